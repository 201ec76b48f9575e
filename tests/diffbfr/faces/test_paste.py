"""What pasting changes and what it leaves: algebra on photos made here."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.faces.align import FRAME_POINTS, Frame, align
from diffbfr.faces.light import luminance, to_light, to_stored
from diffbfr.faces.paste import RestoredFace, enlarge, mask_of, paste, touched
from diffbfr.faces.similarity import Similarity

U8, U16 = np.dtype(np.uint8), np.dtype(np.uint16)


def photo_of(height: int, width: int, dtype: np.dtype = U8, channels: int = 3, period: float = 60) -> NDArray:
    """Smooth and coloured, in about [0.2, 0.8] of the range; a fourth channel is alpha of all values."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [np.sin((x * (1 + i) + y) * 2 * np.pi / period + i) for i in range(3)]
    layers = [0.5 + 0.25 * wave + 0.05 * np.cos(y * 2 * np.pi / period) for wave in waves]
    layers = layers[:1] if channels < 3 else layers
    if channels in (2, 4):
        layers.append((x + y) / (height + width))
    stacked = np.stack(layers, 2) if channels > 1 else layers[0]
    return np.rint(stacked * np.iinfo(dtype).max).astype(dtype)


def frame_at(x: float, y: float, scale: float, turn: float = 0.0) -> Frame:
    """With the middle of the frame at (x, y)."""
    return Frame(
        Similarity.of_shift(-255.5, -255.5)
        .then(Similarity(scale, 0, 0, 0))
        .then(Similarity.of_turn(turn))
        .then(Similarity.of_shift(x, y))
    )


def flat(colour: tuple[int, int, int], px: int = 64) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(colour, np.uint8), (px, px, 3)).copy()


@pytest.mark.parametrize("dtype", [U8, U16])
def test_every_value_of_8_and_16_bits_survives_linear_light(dtype: np.dtype) -> None:
    values = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    assert (to_stored(to_light(values), dtype) == values).all()
    assert (np.diff(to_light(values)) > 0).all()
    assert to_light(np.array([0.0, 0.5, 1.0], np.float32)) == pytest.approx([0, 0.2140, 1], abs=1e-4)


def test_the_luminance_of_gray_is_its_light() -> None:
    gray = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1).repeat(3, 2)
    assert luminance(gray) == pytest.approx(gray[..., :1], abs=1e-6)


@pytest.mark.parametrize(("scale", "turn"), [(0.2, 0), (0.25, 33), (0.5, -170), (0.13, 90)])
def test_an_unchanged_face_changes_nothing_but_rounding_and_interpolation(scale: float, turn: float) -> None:
    photo, frame = photo_of(300, 320), frame_at(150, 160, scale, turn)
    found = paste(photo, [RestoredFace(frame, align(photo, frame, 512).pixels)])
    off = np.abs(found.astype(int) - photo.astype(int))
    assert off.max() <= 3, "waves of 60 px lose (pi / 60)^2 of their amplitude in a bilinear step"
    assert off.mean() < 0.5
    assert (off[~touched(300, 320, [frame])] == 0).all()


@pytest.mark.parametrize("dtype", [U8, U16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_outside_of_the_mask_and_in_alpha_every_value_is_the_photos(dtype: np.dtype, channels: int) -> None:
    generator = np.random.default_rng(channels)
    photo = photo_of(120, 140, dtype, channels)
    photo = (photo // 2 + generator.integers(0, np.iinfo(dtype).max // 2, photo.shape)).astype(dtype)
    before, frame = photo.copy(), frame_at(60, 50, 0.15, 20)
    found = paste(photo, [RestoredFace(frame, flat((250, 10, 90)))])
    assert (photo == before).all(), "the caller's photo is not written to"
    assert found.dtype == photo.dtype
    assert found.shape == photo.shape
    changed = found != photo if photo.ndim == 2 else (found != photo).any(2)
    mask = touched(120, 140, [frame])
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.5
    if channels in (2, 4):
        assert (found[..., -1] == photo[..., -1]).all()


@pytest.mark.parametrize("dtype", [U8, U16])
def test_a_gray_photo_stays_gray(dtype: np.dtype) -> None:
    gray = photo_of(150, 150, dtype, 1)
    frame, face = frame_at(70, 80, 0.2), align(photo_of(200, 200), frame_at(90, 90, 0.2), 64).pixels
    three = paste(np.repeat(gray[..., None], 3, 2), [RestoredFace(frame, face)])
    assert np.ptp(three, axis=2).max() == 0
    assert (three[..., 0] == paste(gray, [RestoredFace(frame, face)])).all()
    assert (three[..., 0] != gray).any()


def test_a_face_of_other_light_and_colour_takes_the_photos() -> None:
    """Factors of 0.85 to 1.2 in linear light, growing to the right, are found and undone."""
    photo, frame = photo_of(300, 300), frame_at(150, 150, 0.4)
    aligned = align(photo, frame, 256).pixels
    ramp = 1 + 0.05 * np.linspace(-1, 1, 256, dtype=np.float32)[None, :, None]
    cast = np.array([0.85, 1.0, 1.15], np.float32) * ramp
    found = paste(photo, [RestoredFace(frame, to_stored(to_light(aligned) * cast, U8))])
    naive = np.abs(to_stored(to_light(photo) * cast.mean((0, 1)), U8).astype(int) - photo)
    off = np.abs(found.astype(int) - photo.astype(int))
    assert off.max() <= 4
    assert naive.max() > 10


def test_another_background_behind_a_face_hardly_changes_its_colour() -> None:
    """A cascade invents what is behind a face; here a fifth of the light is missing outside of an ellipse."""
    photo, frame = photo_of(300, 300), frame_at(150, 150, 0.4)
    aligned = align(photo, frame, 256).pixels
    y, x = np.mgrid[:256, :256]
    behind = np.hypot((x - 128) / 90, (y - 140) / 110)[..., None] > 1
    darker = to_stored(to_light(aligned) * np.where(behind, np.float32(0.8), np.float32(1)), U8)
    found = paste(photo, [RestoredFace(frame, darker)])
    middle = np.s_[110:190, 120:180]
    assert np.abs(found[middle].astype(int) - photo[middle]).mean() < 6, "12 if only the seam is matched"


def test_overlapping_faces_give_one_result_in_any_order() -> None:
    photo = photo_of(200, 300)
    faces = [
        RestoredFace(frame_at(90, 100, 0.25), flat((255, 0, 0))),
        RestoredFace(frame_at(170, 100, 0.25, 15), flat((0, 255, 0))),
        RestoredFace(frame_at(130, 110, 0.2), flat((0, 0, 255))),
    ]
    results = [paste(photo, list(order)) for order in permutations(faces)]
    assert all((result == results[0]).all() for result in results)


def test_no_face_is_laid_over_the_middle_of_another() -> None:
    """Each of two faces keeps what it has alone in the middle of its frame, but for the light of another seam."""
    photo = photo_of(200, 300)
    left, right = frame_at(100, 100, 0.25), frame_at(165, 100, 0.25)
    generator = np.random.default_rng(0)
    one, two = (
        RestoredFace(f, generator.integers(0, 256, (64, 64, 3)).astype(np.uint8)) for f in (left, right)
    )
    both = paste(photo, [one, two])
    for face, x in ((one, 100), (two, 165)):
        part = np.s_[95:120, x - 10 : x + 10]
        alone = paste(photo, [face])[part]
        assert np.abs(both[part].astype(int) - alone).max() <= 12
        assert np.abs(alone.astype(int) - photo[part]).mean() > 40
    kept = paste(photo, [one], keep=[right])
    assert (kept[95:120, 160:180] == photo[95:120, 160:180]).all(), "a face that is left alone"
    assert (paste(photo, [one])[95:120, 155:160] != photo[95:120, 155:160]).any()


def test_strength_blends_in_linear_light() -> None:
    photo, frame = photo_of(200, 200), frame_at(100, 100, 0.3)
    face = [RestoredFace(frame, align(photo, frame_at(90, 90, 0.3), 128).pixels)]
    whole, half = paste(photo, face), paste(photo, face, strength=0.5)
    assert (paste(photo, face, strength=0) == photo).all()
    middle = (to_light(photo) + to_light(whole)) / 2
    assert np.abs(to_stored(middle, U8).astype(int) - half).max() <= 1


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("dtype", [U8, U16])
def test_upscale_enlarges_the_photo_and_moves_the_frame(factor: int, dtype: np.dtype) -> None:
    photo, frame = photo_of(100, 120, dtype), frame_at(60, 50, 0.12, 10)
    unchanged = [RestoredFace(frame, align(photo, frame, 256).pixels)]
    found = paste(photo, unchanged, upscale=factor)
    assert found.shape == (100 * factor, 120 * factor, 3)
    larger = enlarge(photo, factor)
    mask = touched(100, 120, [frame], upscale=factor)
    assert (found[~mask] == larger[~mask]).all()
    off = np.abs(found.astype(int) - larger.astype(int)) / np.iinfo(dtype).max * 255
    assert off.max() < 5, "the face lies where it lay"
    assert mask.sum() == pytest.approx(touched(100, 120, [frame]).sum() * factor**2, rel=0.1)


def test_a_face_across_the_border_is_pasted_up_to_the_border() -> None:
    photo, frame = photo_of(100, 100), frame_at(5, 50, 0.2)
    found = paste(photo, [RestoredFace(frame, flat((0, 0, 0)))])
    assert (found[45:55, 0] < photo[45:55, 0]).all()
    mask = mask_of(frame, 100, 100)
    assert mask is not None
    assert mask.columns.start == 0
    assert mask.share[50, 0] == 1


def test_a_frame_outside_of_the_photo_changes_nothing() -> None:
    photo, frame = photo_of(50, 50), frame_at(500, 500, 0.2)
    assert mask_of(frame, 50, 50) is None
    assert (paste(photo, [RestoredFace(frame, flat((0, 0, 0)))]) == photo).all()


def test_the_mask_falls_from_1_to_0_inside_the_frame() -> None:
    mask = mask_of(Frame(Similarity.of_shift(10, 10)), 532, 532)
    assert mask is not None
    whole = np.zeros((532, 532), np.float32)
    whole[mask.rows, mask.columns] = mask.share
    assert whole[265, 265] == 1
    assert whole[:12].max() == whole[-12:].max() == whole[:, :12].max() == 0, "0 at the frame's edge"
    assert np.abs(np.diff(whole[265])).max() < 0.03, "no step"
    assert (np.sort(whole[265, :266]) == whole[265, :266]).all()
    eyes_and_mouth = np.round(FRAME_POINTS + 10).astype(int)
    assert (whole[eyes_and_mouth[:, 1], eyes_and_mouth[:, 0]] == 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"strength": 1.2}, "expected a number from 0 to 1"), ({"upscale": 3}, "expected one of 1, 2, 4")],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        paste(photo_of(20, 20), [], **options)
