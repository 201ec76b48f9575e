"""What lies below full transparency decides nothing: no face is found there, and no edge gets its colour."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.faces.align import FRAME_POINTS, align, fit_frame
from diffbfr.faces.paste import RestoredFace, enlarge, paste, touched
from diffbfr.faces.photo import detection_pixels
from diffbfr.faces.similarity import Similarity
from diffbfr.faces.transparency import alpha_of, filled_colours
from tests.diffbfr.faces.dots import DotDetector, draw

FRAME = fit_frame(Similarity(0.12, 0.0, 20, 20)(FRAME_POINTS))


def cut_out(below: int, dtype: Any = np.uint8, channels: int = 4) -> NDArray[Any]:
    """A disk of one colour with a soft edge; below what is wholly transparent lies something else."""
    y, x = np.mgrid[:100, :100]
    alpha = np.clip((30 - np.hypot(x - 50, y - 50)) / 3 + 0.5, 0, 1)
    full = np.iinfo(dtype).max
    colours = [np.where(alpha > 0, level * full // 255, below * full // 255) for level in (200, 120, 80)]
    stacked = np.stack([*colours[: channels - 1], np.rint(alpha * full)], 2)
    return stacked.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_an_aligned_face_does_not_depend_on_what_is_not_seen(dtype: Any, channels: int) -> None:
    dark, light = (cut_out(below, dtype, channels) for below in (0, 255))
    found = align(dark, FRAME, 64).pixels
    assert (found == align(light, FRAME, 64).pixels).all()
    expected = (200, 120, 80) if channels == 4 else (200, 200, 200)
    assert np.abs(found.astype(int) - expected).max() <= 1, "a disk of one colour goes on beyond its edge"
    assert (detection_pixels(dark) == detection_pixels(light)).all()
    assert (filled_colours(dark) == filled_colours(light)).all()


def test_a_restored_face_leaves_no_fringe_and_no_change_where_nothing_is_seen() -> None:
    for below in (0, 255):
        photo = cut_out(below)
        same = paste(photo, [RestoredFace(FRAME, align(photo, FRAME, 128).pixels)])
        assert np.abs(same.astype(int) - photo.astype(int)).max() <= 1, "the edges too"
        other = paste(photo, [RestoredFace(FRAME, np.full((64, 64, 3), 90, np.uint8))])
        unseen = photo[..., 3] == 0
        assert (other[unseen] == photo[unseen]).all()
        assert (other[..., 3] == photo[..., 3]).all()
        changed = (other != photo).any(2)
        assert changed[touched(100, 100, [FRAME]) & ~unseen].mean() > 0.9


def test_a_face_below_transparency_is_not_found() -> None:
    colours = np.full((120, 160, 3), 128, np.uint8)
    draw(colours, place := Similarity(0.1, 0.0, 40, 30))
    photo = np.dstack([colours, np.full((120, 160), 255, np.uint8)])
    assert len(DotDetector().detect(detection_pixels(photo))) == 1
    photo[25:85, 35:100, 3] = 0
    assert not DotDetector().detect(detection_pixels(photo))
    photo[..., 3] = 40
    assert (align(photo, fit_frame(place(FRAME_POINTS)), 64).pixels.min((0, 1)) < 60).all(), "faint is seen"
    assert len(DotDetector().detect(detection_pixels(photo))) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_gives_edges_no_colour_from_below(dtype: Any, factor: int) -> None:
    dark, light = (enlarge(cut_out(below, dtype), factor) for below in (0, 255))
    assert dark.shape == (100 * factor, 100 * factor, 4)
    seen = dark[..., 3] > np.iinfo(dtype).max // 50
    expected = np.array([200, 120, 80]) * (np.iinfo(dtype).max // 255)
    for photo in (dark, light):
        off = np.abs(photo[seen][:, :3].astype(int) - expected)
        assert off.max() <= np.iinfo(dtype).max / 255 * 4, "rounding, where alpha is small"
    assert (dark[..., 3] == light[..., 3]).all()


def test_strips_of_a_tall_photo_leave_no_seam() -> None:
    generator = np.random.default_rng(3)
    photo = generator.integers(0, 256, (600, 8, 4), dtype=np.uint8)
    photo[0, 0, 3] = 0
    photo[1:, :, 3] = 255
    large = enlarge(photo, 2)
    opaque = enlarge(np.ascontiguousarray(photo[..., :3]), 2)
    assert np.abs(large[8:, :, :3].astype(int) - opaque[8:].astype(int)).max() <= 1


def test_an_opaque_photo_has_no_alpha_to_heed() -> None:
    photo = cut_out(0)
    assert alpha_of(photo) is not None
    photo[..., 3] = 255
    assert alpha_of(photo) is None
    assert alpha_of(photo[..., :3]) is None
    assert alpha_of(photo[..., 0]) is None
