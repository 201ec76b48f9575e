"""A picture of ours has the same pixels by OpenCV, which reads shards, as by Pillow, which reads
everything else.
"""

from functools import partial

import numpy as np
import pytest

from diffbfr.degradation import DegradationParams, DegradationSpec, degrade
from diffbfr.images import (
    Pixels,
    decode,
    decode_trusted,
    encode_png,
    encode_stored_png,
    encode_truth,
    encode_webp,
)
from diffbfr.images.errors import ImageRefused
from tests.diffbfr.image_corpus import file_of, picture, png_claiming


def _noise(px: int) -> Pixels:
    return np.random.default_rng(px).integers(0, 256, (px, px, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "encode", [encode_png, encode_stored_png, encode_webp, partial(encode_truth, codec="png")]
)
@pytest.mark.parametrize(
    "face",
    [picture(48, 32), np.zeros((7, 9, 3), np.uint8), _noise(1), _noise(65)],
    ids=lambda face: str(face.shape),
)
def test_a_lossless_picture_comes_back(encode: object, face: Pixels) -> None:
    found = decode_trusted(encode(face))  # type: ignore[operator]
    assert found.dtype == np.uint8
    assert (found == face).all()


@pytest.mark.parametrize("gray", [False, True])
def test_a_low_quality_face_is_the_same_in_training_and_in_restoration(gray: bool) -> None:
    """Every quality, and sizes that end within a block of 8 or 16."""
    for number in range(100):
        px = 1 + number % 97
        face = _noise(px) if number % 3 else np.ascontiguousarray(picture(px, px))
        params = DegradationParams(0.0, 1.0, 4.0 * (number % 2), 1 + number, gray, False, number)
        data = degrade(face, params, DegradationSpec(hq_px=px, q=(1, 100)))
        assert (decode_trusted(data) == decode(data).pixels).all(), number


def test_what_no_commit_of_ours_holds_is_not_opened() -> None:
    for image_format in ("BMP", "TIFF", "GIF"):
        with pytest.raises(ImageRefused, match="expected a PNG, JPEG or lossless WebP of ours"):
            decode_trusted(file_of(picture(), image_format))
    with pytest.raises(ImageRefused, match="expected a PNG, JPEG or lossless WebP"):
        decode_trusted(b"")
    with pytest.raises(ImageRefused, match="claims 30000 x 30000 pixels"):
        decode_trusted(png_claiming(30000, 30000))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_ends_early_is_refused(image_format: str) -> None:
    whole = file_of(picture(), image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    for length in (2, 12, 22, 30):
        with pytest.raises(ImageRefused):
            decode_trusted(whole[:length])
