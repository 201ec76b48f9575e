"""A restored photo keeps its format, depth, channels, metadata, and every pixel that was not restored."""

import io
import struct
import xml.etree.ElementTree as ElementTree
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from diffbfr.faces.align import Frame
from diffbfr.faces.paste import RestoredFace, paste, touched
from diffbfr.faces.similarity import Similarity
from diffbfr.images import ImageRefused
from diffbfr.images.photo import SourcePhoto, read_photo
from diffbfr.images.tiff_writer import encode_tiff
from pipelines.restoration.photo_output import (
    EncodedPhoto,
    WrittenFormat,
    check_holds,
    encode_photo,
    written_format,
)
from pipelines.restoration.provenance import Provenance
from pipelines.sources.sandbox import run_sandboxed
from tests.diffbfr.image_corpus import file_of

PROVENANCE = Provenance(model_digest="d1" * 32, input_sha256="ab" * 32, mode="fast", seed=7)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CHANNELS: dict[str, Any] = {"gray": 0, "gray_alpha": [0, 3], "rgb": [0, 1, 2], "rgba": [0, 1, 2, 3]}
OWN: tuple[WrittenFormat, ...] = ("png", "tiff", "webp", "jpeg")
LOSSLESS: tuple[tuple[WrittenFormat, int], ...] = (
    ("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16), ("webp", 8)
)  # fmt: skip


def scene(width: int = 160, height: int = 120, bits: int = 8) -> np.ndarray:
    """A smooth scene with fine noise, RGBA."""
    draws = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width] / 40.0
    waves = [np.sin(a * x + b * y + c) for a, b, c in ((1, 2, 0), (2, -1, 1), (-1, 1, 2), (1, 0, 3))]
    levels = 0.5 + 0.35 * np.stack(waves, 2) + 0.02 * draws.standard_normal((height, width, 4))
    return np.clip(levels * (1 << bits), 0, (1 << bits) - 1).astype(np.uint8 if bits == 8 else np.uint16)


def snapshot(width: int = 250, height: int = 171) -> np.ndarray:
    """A grainy scene of muted colours, RGB, which no decoder has to clip."""
    draws = np.random.default_rng(4)
    waves = scene(width, height)[..., :3] / 255.0 - 0.5
    light = 0.5 + 0.6 * waves[..., :1] + 0.02 * draws.standard_normal((height, width, 1))
    return np.clip(255 * (light + 0.15 * waves), 0, 255).astype(np.uint8)


def exif_block(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "box camera"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "1998:05:04 03:02:01"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 30.0, 0.0)
    return exif


def packet(data: bytes) -> bytes:
    """The XMP packet, from where each format has it."""
    with Image.open(io.BytesIO(data)) as image:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return bytes(image.tag_v2[700])
        return bytes(image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode())


def unchanged(photo: SourcePhoto, file_format: WrittenFormat) -> EncodedPhoto:
    return encode_photo(photo, photo.pixels, PROVENANCE, file_format)


@pytest.mark.parametrize(("file_format", "bits"), LOSSLESS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_no_pixel_outside_of_a_face_changes(channels: str, bits: int, file_format: WrittenFormat) -> None:
    photo = SourcePhoto(np.ascontiguousarray(scene(bits=bits)[..., CHANNELS[channels]]), "PNG")
    frame = Frame(Similarity(0.1, 0.02, 40.0, 30.0))
    face = RestoredFace(frame, np.full((64, 64, 3), 90, np.uint8))
    pasted = paste(photo.pixels, [face])
    data = encode_photo(photo, pasted, PROVENANCE, file_format).data
    if (channels, bits, file_format) == ("gray_alpha", 16, "tiff"):  # Pillow and OpenCV do not read it
        return
    found = read_photo(data).pixels
    if file_format == "webp" and "gray" in channels:  # which has colours only
        assert not np.ptp(found[..., :3], axis=2).any()
        found = found[..., 0] if channels == "gray" else found[..., [0, 3]]
    np.testing.assert_array_equal(found, pasted)
    outside = ~touched(photo.pixels.shape[0], photo.pixels.shape[1], [frame])
    assert 0.3 < outside.mean() < 0.99
    np.testing.assert_array_equal(found[outside], photo.pixels[outside])
    assert not np.array_equal(found, photo.pixels)


@pytest.mark.parametrize(
    ("subsampling", "quality", "most_changed", "most_mean"),
    [(0, 90, 0.04, 0.06), (1, 90, 0.05, 0.07), (2, 75, 0.04, 0.05), (2, 90, 0.05, 0.07), (2, 95, 0.15, 0.15)],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_changes_by_no_more_than_its_own_rounding(
    subsampling: int, quality: int, most_changed: float, most_mean: float, orientation: int
) -> None:
    source = file_of(
        snapshot(), "JPEG", quality=quality, subsampling=subsampling, exif=exif_block(orientation)
    )
    photo = read_photo(source)
    again = read_photo(unchanged(photo, "jpeg").data)
    assert again.jpeg == photo.jpeg
    changes = np.abs(again.pixels.astype(int) - photo.pixels)
    assert (changes.max(2) > 0).mean() <= most_changed
    assert changes.mean() <= most_mean
    assert changes.max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_seen_as_it_was(orientation: int) -> None:
    photo = read_photo(
        file_of(np.ascontiguousarray(scene()[..., :3]), "JPEG", exif=exif_block(orientation), dpi=(300, 150))
    )
    again = read_photo(unchanged(photo, "jpeg").data)
    assert again.pixels.shape == photo.pixels.shape
    assert np.abs(again.pixels.astype(int) - photo.pixels).mean() < 0.1
    assert (again.exif, again.dpi, again.orientation) == (photo.exif, photo.dpi, orientation)
    upright = read_photo(unchanged(photo, "png").data)
    assert upright.orientation == 1
    np.testing.assert_array_equal(upright.pixels, photo.pixels)


@pytest.mark.parametrize("kind", ["progressive", "rgb", "gray", "one_table", "finest"])
def test_a_jpeg_of_another_kind_keeps_its_coding(kind: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "progressive": {"progressive": True, "quality": 80},
        "rgb": {"keep_rgb": True, "subsampling": 0},
        "one_table": {"qtables": [[7] * 64]},
        "finest": {"qtables": [[1] * 64], "subsampling": 0, "progressive": True},
    }
    options = kinds.get(kind, {})
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    pixels = noise if kind == "finest" else snapshot()[..., 0 if kind == "gray" else slice(3)]
    photo = read_photo(file_of(pixels, "JPEG", **options))
    again = read_photo(unchanged(photo, "jpeg").data)
    assert (again.jpeg, again.is_gray) == (photo.jpeg, kind == "gray")
    assert np.abs(again.pixels.astype(int) - photo.pixels).mean() < 0.2


def test_a_sampling_that_pillow_cannot_write_becomes_the_finer_one() -> None:
    made = cv2.imencode(
        ".jpg", scene()[..., :3], [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440]
    )[1].tobytes()
    photo = read_photo(made)
    again = read_photo(unchanged(photo, "jpeg").data)
    assert photo.jpeg is not None
    assert again.jpeg is not None
    assert (photo.jpeg.sampling, again.jpeg.sampling) == ((1, 2), (1, 1))
    assert again.jpeg.tables == photo.jpeg.tables


@pytest.mark.parametrize("file_format", OWN)
def test_metadata_goes_on_but_no_position(file_format: WrittenFormat) -> None:
    source = file_of(
        np.ascontiguousarray(scene()[..., :3]), "JPEG", icc_profile=PROFILE, exif=exif_block(), dpi=(300, 300)
    )
    encoded = unchanged(read_photo(source), file_format)
    again = read_photo(encoded.data)
    assert again.icc == PROFILE
    kept = Image.Exif()
    kept.load(again.exif or b"")
    assert kept[ExifTags.Base.Model] == "box camera"
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "1998:05:04 03:02:01"
    whole = Image.open(io.BytesIO(encoded.data)).getexif()
    assert not whole.get_ifd(ExifTags.IFD.GPSInfo)
    assert whole.get(ExifTags.Base.Orientation, 1) == 1
    if file_format == "webp":
        assert encoded.notes == ("its density was left out; WebP has none",)
    else:
        assert again.dpi == pytest.approx((300, 300), rel=1e-4)
        assert encoded.notes == ()


@pytest.mark.parametrize("file_format", OWN)
def test_a_position_goes_on_where_it_was_asked_for(file_format: WrittenFormat) -> None:
    source = file_of(snapshot(), "JPEG", exif=exif_block(6))
    photo = read_photo(source, metadata="all")
    again = read_photo(unchanged(photo, file_format).data, metadata="all")
    assert again.exif == photo.exif
    assert again.pixels.shape == photo.pixels.shape
    kept = Image.Exif()
    kept.load(again.exif or b"")
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (51.0, 30.0, 0.0)


@pytest.mark.parametrize(("file_format", "bits"), [*LOSSLESS, ("jpeg", 8)])
def test_the_packet_of_provenance_is_where_readers_look(file_format: WrittenFormat, bits: int) -> None:
    photo = SourcePhoto(np.ascontiguousarray(scene(bits=bits)[..., :3]), "PNG")
    data = unchanged(photo, file_format).data
    assert data == unchanged(photo, file_format).data
    assert packet(data) == PROVENANCE.xmp().encode()
    ElementTree.fromstring(packet(data).decode())


def test_a_tiff_stays_uncompressed_if_it_was() -> None:
    pixels = np.ascontiguousarray(scene()[..., :3])
    for compression, expected in (("raw", 1), ("tiff_lzw", 8), ("tiff_adobe_deflate", 8)):
        photo = read_photo(file_of(pixels, "TIFF", compression=compression))
        with Image.open(io.BytesIO(unchanged(photo, "tiff").data)) as image:
            assert isinstance(image, TiffImagePlugin.TiffImageFile)
            assert image.tag_v2[TiffImagePlugin.COMPRESSION] == expected


def test_a_tiff_of_several_strips_is_read_by_others() -> None:
    pixels = scene(600, 350, bits=16)
    data = encode_tiff(pixels, dpi=(300.0, 150.0))
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    np.testing.assert_array_equal(found[..., [2, 1, 0, 3]], pixels)
    assert struct.unpack_from("<H", data, 8)[0] > 8


def test_a_lossy_webp_is_written_losslessly() -> None:
    source = file_of(np.ascontiguousarray(scene()[..., :3]), "WEBP", quality=60)
    photo = read_photo(source)
    assert written_format(photo.format) == "webp"
    data = unchanged(photo, "webp").data
    assert b"VP8L" in data
    np.testing.assert_array_equal(read_photo(data).pixels, photo.pixels)


@pytest.mark.parametrize(
    ("source", "wanted", "expected"),
    [
        ("JPEG", None, "jpeg"), ("PNG", None, "png"), ("WEBP", None, "webp"), ("TIFF", None, "tiff"),
        ("BMP", None, "png"), ("GIF", None, "png"), ("PNM", None, "png"), ("TGA", None, "png"),
        ("AVIF", None, "png"), ("JPEG 2000", None, "png"), ("JPEG", "webp", "webp"), ("BMP", "jpeg", "jpeg"),
    ],
)  # fmt: skip
def test_the_format_of_an_output(source: str, wanted: Any, expected: str) -> None:
    assert written_format(source, wanted) == expected


@pytest.mark.parametrize(
    ("channels", "bits", "file_format", "upscale", "reason", "says"),
    [
        ("rgb", 16, "jpeg", 1, "unsupported_pixels", "16 bits a channel, and JPEG holds 8"),
        ("gray", 16, "webp", 1, "unsupported_pixels", "16 bits a channel, and WebP holds 8"),
        ("rgba", 8, "jpeg", 1, "has_alpha", "transparent pixels, and JPEG holds none"),
        ("rgb", 8, "webp", 128, "too_many_pixels", "20480 x 15360 pixels, and WebP holds 16383 a side"),
    ],
)
def test_a_format_that_cannot_hold_the_photo_is_one_clear_line(
    channels: str, bits: int, file_format: WrittenFormat, upscale: int, reason: str, says: str
) -> None:
    photo = SourcePhoto(np.ascontiguousarray(scene(bits=bits)[..., CHANNELS[channels]]), "PNG")
    with pytest.raises(ImageRefused, match=says) as caught:
        check_holds(photo, file_format, upscale)
    assert caught.value.reason_code == reason
    assert "--format" in str(caught.value)
    assert "\n" not in str(caught.value)
    if upscale == 1:
        with pytest.raises(ImageRefused, match=says):
            unchanged(photo, file_format)


def test_an_opaque_alpha_is_no_loss_in_a_jpeg() -> None:
    pixels = scene()
    pixels[..., 3] = 255
    for channels in ([0, 3], [0, 1, 2, 3]):
        photo = SourcePhoto(np.ascontiguousarray(pixels[..., channels]), "PNG")
        assert read_photo(unchanged(photo, "jpeg").data).is_gray == (len(channels) == 2)


def test_pixels_of_another_kind_than_the_photos_are_a_bug() -> None:
    photo = SourcePhoto(np.ascontiguousarray(scene()[..., :3]), "PNG")
    for wrong in (scene(), scene(bits=16)[..., :3], scene()[..., 0]):
        with pytest.raises(ValueError, match="differ in depth or channels"):
            encode_photo(photo, wrong, PROVENANCE, "png")


def test_both_ends_run_in_the_sandbox() -> None:
    source = file_of(
        np.ascontiguousarray(scene()[..., :3]),
        "JPEG",
        icc_profile=PROFILE,
        exif=exif_block(6),
        dpi=(300, 300),
    )
    photo = run_sandboxed(read_photo, source, returns=SourcePhoto)
    assert isinstance(photo, SourcePhoto)
    here = read_photo(source)
    np.testing.assert_array_equal(photo.pixels, here.pixels)
    assert (photo.jpeg, photo.icc, photo.exif, photo.dpi) == (here.jpeg, here.icc, here.exif, here.dpi)
    encoded = run_sandboxed(encode_photo, photo, photo.pixels, PROVENANCE, "jpeg", returns=EncodedPhoto)
    assert encoded == unchanged(here, "jpeg")
