import hashlib
import json
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.synthetic import ATTRIBUTE_RATES, FFHQ_LANDMARKS, attributes, draw_attributes, render_face
from diffbfr.synthetic.attributes import FaceAttributes, RandomStream, from_frame, to_frame
from diffbfr.synthetic.canvas import Canvas

PINNED = {
    (0, 16): "5e0bc454e74362bc",
    (1, 100): "7bb5e50ebc382d96",
    (20, 128): "bb0aa6b831f580b5",
    (2**64 - 1, 256): "1f90bc6210a8380d",
}


def digest(seed: int, px: int) -> str:
    return hashlib.sha256(render_face(seed, px).pixels.tobytes()).hexdigest()[:16]


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    return float(10.0 * np.log10(255.0**2 / np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2)))


@pytest.fixture(scope="module")
def population() -> list[FaceAttributes]:
    return [draw_attributes(seed) for seed in range(1000)]


def test_a_face_is_uint8_rgb_of_the_size_asked_for() -> None:
    for px in (16, 33, 128, 200):
        pixels = render_face(5, px).pixels
        assert pixels.shape == (px, px, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize(("seed", "px"), PINNED)
def test_the_same_seed_and_size_give_the_same_pixels_everywhere(seed: int, px: int) -> None:
    assert digest(seed, px) == PINNED[seed, px]


def test_rendering_leaves_no_trace_on_the_next_face() -> None:
    first = digest(7, 64)
    render_face(8, 64)
    assert digest(7, 64) == first


@pytest.mark.parametrize("seed", range(6))
def test_the_same_seed_at_two_sizes_is_the_same_face(seed: int) -> None:
    large, small = render_face(seed, 256), render_face(seed, 128)
    light = large.pixels.astype(np.float64) ** 2  # blend in the renderer's linear light
    blocks = np.sqrt(light.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3)))
    assert large.attributes == small.attributes
    assert psnr(blocks, small.pixels) > 38.0


def test_seeds_differ_in_attributes_and_pixels() -> None:
    faces = [render_face(seed, 32).pixels for seed in range(24)]
    assert all(psnr(one, two) < 25.0 for i, one in enumerate(faces) for two in faces[:i])


@pytest.mark.parametrize("name", sorted(ATTRIBUTE_RATES))
def test_long_tail_attributes_occur_at_their_stated_rates(
    name: str, population: list[FaceAttributes]
) -> None:
    held = [face.beard != "none" if name == "beard" else bool(getattr(face, name)) for face in population]
    rate, count = ATTRIBUTE_RATES[name], len(population)
    assert abs(sum(held) / count - rate) < 4.0 * (rate * (1.0 - rate) / count) ** 0.5


def test_every_named_choice_occurs(population: list[FaceAttributes]) -> None:
    for field, names in (
        ("hair_style", attributes.HAIR_STYLES),
        ("hair_colour", attributes.HAIR_COLOURS),
        ("eye_colour", attributes.EYE_COLOURS),
        ("backdrop", attributes.BACKDROPS),
        ("garment", attributes.GARMENTS),
    ):
        assert {getattr(face, field) for face in population} == set(names)


def test_skin_runs_from_light_to_dark(population: list[FaceAttributes]) -> None:
    tones = np.array([face.skin_tone for face in population])
    assert tones.min() < 0.02
    assert tones.max() > 0.98
    fair, dark = (
        next(f for f in population if low < f.skin_tone < low + 0.05 and not f.gray) for low in (0.0, 0.9)
    )
    forehead = [render_face(face.seed, 64).pixels[22:25, 30:34].mean() for face in (fair, dark)]
    assert forehead[0] > 1.5 * forehead[1]


def test_attributes_are_frozen_and_made_of_simple_types() -> None:
    face = draw_attributes(3)
    assert json.loads(json.dumps(asdict(face)))["seed"] == 3
    with pytest.raises(FrozenInstanceError):
        face.gray = True  # type: ignore[misc]


def test_landmarks_lie_around_the_ffhq_frame(population: list[FaceAttributes]) -> None:
    places = np.array([face.landmarks for face in population])
    offsets = places - np.array(FFHQ_LANDMARKS)
    assert np.abs(offsets.mean(axis=0)).max() < 0.5
    assert np.abs(offsets).max() < 30.0
    assert offsets.std(axis=0).max() < 6.0


def test_eyes_are_painted_where_the_landmarks_say() -> None:
    face = next(
        f
        for f in map(draw_attributes, range(200))
        if f.skin_tone < 0.2 and not (f.glasses or f.fringe or f.gray)
    )
    luma = render_face(face.seed, 256).pixels.astype(np.float64).mean(axis=2)
    for x, y in face.landmarks[:2]:
        row, column = int(y / 2.0), int(x / 2.0)
        assert luma[row - 4 : row + 4, column - 4 : column + 4].min() < 40.0
        assert luma[row + 26 : row + 32, column - 4 : column + 4].min() > 80.0


def test_a_gray_photo_has_three_equal_channels_and_no_other_has(population: list[FaceAttributes]) -> None:
    gray = next(face.seed for face in population if face.gray)
    colour = next(face.seed for face in population if not face.gray)
    pixels = render_face(gray, 48).pixels
    assert (pixels == pixels[..., :1]).all()
    pixels = render_face(colour, 48).pixels.astype(int)
    assert np.abs(pixels[..., 0] - pixels[..., 2]).max() > 20


def test_edges_are_sharp_enough_for_a_blur_to_show() -> None:
    for seed in range(6):
        pixels = render_face(seed, 128).pixels.astype(np.float64)
        blurred = pixels.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)).repeat(4, axis=0).repeat(4, axis=1)
        assert psnr(pixels, blurred) < 30.0


def test_the_pose_is_undone_exactly() -> None:
    pose = (0.013, 1.02, (3.0, -2.0))
    assert from_frame(to_frame((211.0, 97.0), *pose), *pose) == pytest.approx((211.0, 97.0))


def test_a_thin_line_keeps_its_ink_at_any_size() -> None:
    face = draw_attributes(0)
    inks = []
    for size in (64, 512):
        window = Canvas(face, size).full
        inks.append(float(window.stroke(window.x - 250.0, 1.0).sum()) / size**2)
    assert inks[0] == pytest.approx(inks[1], rel=0.01)


def test_raw_words_map_to_the_documented_numbers() -> None:
    words = RandomStream(9, 1)
    raw = np.random.Philox(key=(1 << 64) | 9).random_raw(130)
    assert [words.unit() for _ in range(130)] == [int(word >> np.uint64(11)) / 2**53 for word in raw]


@pytest.mark.parametrize("px", [0, 15, 513, -128, True])
def test_an_unfit_size_is_refused_in_one_line(px: int) -> None:
    with pytest.raises(UsageError, match=r"^face size is .*expected an integer from 16 to 512") as caught:
        render_face(0, px)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**64, True])
def test_an_unfit_seed_is_refused_in_one_line(seed: int) -> None:
    with pytest.raises(UsageError, match=r"^face seed is .*expected an integer"):
        draw_attributes(seed)
