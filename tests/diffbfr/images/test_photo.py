"""A photo is read with every bit, channel and setting that its file has."""

import contextlib
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, TiffTags

from diffbfr.faces.align import colour_layers
from diffbfr.images import ImageRefused, Pixels, decode
from diffbfr.images.deep_png import encode_deep_png
from diffbfr.images.jpeg_coding import JpegCoding
from diffbfr.images.orientation import turned, turned_back
from diffbfr.images.photo import SourcePhoto, read_photo
from diffbfr.images.tiff_writer import encode_tiff
from tests.diffbfr.image_corpus import Case, chunk, corpus, file_of, picture

DRAWS = np.random.default_rng(5)
DEEP = DRAWS.integers(0, 1 << 16, (21, 34, 4), dtype=np.uint16)
SHALLOW = DRAWS.integers(0, 256, (21, 34, 4), dtype=np.uint8)
CHANNELS: dict[str, Any] = {"gray": 0, "gray_alpha": [0, 3], "rgb": [0, 1, 2], "rgba": [0, 1, 2, 3]}


def deep_png(pixels: np.ndarray, *extra: bytes) -> bytes:
    """A 16-bit PNG by hand, without filters."""
    layers = pixels if pixels.ndim == 3 else pixels[..., None]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[layers.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in layers)
    header = struct.pack(">IIBBBBB", layers.shape[1], layers.shape[0], 16, kind, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def refusal(data: bytes, **limits: Any) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        read_photo(data, **limits)
    assert "\n" not in str(caught.value)
    return caught.value


def profile(space: bytes) -> bytes:
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made[16:20] = space
    return bytes(made)


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_png_of_16_bits_keeps_each_of_them(channels: str) -> None:
    pixels = DEEP[..., CHANNELS[channels]]
    photo = read_photo(deep_png(pixels))
    assert (photo.bits, photo.is_gray, photo.notes) == (16, "gray" in channels, ())
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert (photo.alpha is not None) == (channels in ("gray_alpha", "rgba"))
    assert colour_layers(photo.pixels).shape[2] == (1 if photo.is_gray else 3)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("channels", ["gray", "rgb", "rgba"])
def test_a_tiff_of_16_bits_keeps_each_of_them(channels: str, compressed: bool) -> None:
    pixels = DEEP[..., CHANNELS[channels]]
    photo = read_photo(encode_tiff(pixels, compressed=compressed))
    assert (photo.bits, photo.compressed, photo.notes) == (16, compressed, ())
    np.testing.assert_array_equal(photo.pixels, pixels)


@pytest.mark.parametrize("form", [{}, {"compression": 5}, {"compression": 8}])
def test_a_tiff_of_16_bit_colours_by_another_encoder(form: dict[str, int]) -> None:
    options = [cv2.IMWRITE_TIFF_COMPRESSION, form["compression"]] if form else []
    data = cv2.imencode(".tiff", DEEP[..., [2, 1, 0]], options)[1].tobytes()
    np.testing.assert_array_equal(read_photo(data).pixels, DEEP[..., :3])


def test_the_largest_page_keeps_its_16_bits_too() -> None:
    pages = [np.ascontiguousarray(DEEP[:5, :5, :3]), DEEP[..., [2, 1, 0]]]
    data = cv2.imencodemulti(".tiff", pages)[1].tobytes()
    photo = read_photo(data)
    np.testing.assert_array_equal(photo.pixels, DEEP[..., :3])
    assert photo.notes == ("page 2 of 2 was taken, the largest",)
    reversed_pages = cv2.imencodemulti(".tiff", pages[::-1])[1].tobytes()
    assert read_photo(reversed_pages).notes == ("page 1 of 2 was taken, the largest",)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_tiff_of_16_bit_colours_comes_upright(orientation: int) -> None:
    data = bytearray(encode_tiff(DEEP[..., :3]))
    entries = [bytes(data[start : start + 12]) for start in range(10, 10 + 12 * data[8], 12)]
    # one plane is the default, so its tag can make room
    kept = [entry for entry in entries if struct.unpack_from("<H", entry) != (284,)]
    kept.append(struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    data[10 : 10 + 12 * len(kept)] = b"".join(sorted(kept, key=lambda entry: struct.unpack_from("<H", entry)))
    np.testing.assert_array_equal(read_photo(bytes(data)).pixels, turned(DEEP[..., :3], orientation))


def tiff_of_planes(pixels: np.ndarray, order: str) -> bytes:
    """An uncompressed RGB TIFF of 16 bits whose channels follow each other, in two strips each."""
    height, width, _ = pixels.shape
    rows = height // 2 + 1
    parts = [pixels[top : top + rows, :, band] for band in range(3) for top in (0, rows)]
    strips = [part.astype(f"{order}u2").tobytes() for part in parts]
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    for tag, value in ((256, width), (257, height), (258, (16, 16, 16)), (259, 1), (262, 2), (277, 3)):
        tags[tag] = value
    tags[278], tags[284] = rows, 2
    for tag, values in (
        (279, [len(strip) for strip in strips]),
        (273, np.cumsum([0, *map(len, strips)])[:-1]),
    ):
        tags.tagtype[tag] = TiffTags.LONG
        tags[tag] = tuple(int(value) for value in values)
    buffer = io.BytesIO()
    tags.save(buffer)
    return buffer.getvalue() + b"".join(strips)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colours_whose_channels_lie_apart(order: str) -> None:
    """With 8 bits they are what they are, and not noise; whole they are not read."""
    data = tiff_of_planes(DEEP[..., :3], order)
    np.testing.assert_array_equal(decode(data).pixels, DEEP[..., :3] >> 8)
    assert "its channels lie apart" in str(refusal(data))


def test_gray_of_16_bits_that_counts_from_white_is_inverted_not_reduced() -> None:
    data = encode_tiff(DEEP[..., 0])
    at = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    inverted = data[:at] + struct.pack("<H", 0) + data[at + 2 :]
    np.testing.assert_array_equal(read_photo(inverted).pixels, 0xFFFF - DEEP[..., 0])


def test_a_transparent_level_or_colour_of_16_bits_becomes_an_alpha() -> None:
    gray, colour = DEEP[..., 0], DEEP[..., :3]
    level = chunk(b"tRNS", struct.pack(">H", gray[4, 7]))
    photo = read_photo(deep_png(gray, level))
    np.testing.assert_array_equal(photo.pixels[..., 0], gray)
    np.testing.assert_array_equal(photo.pixels[..., 1] == 0, gray == gray[4, 7])
    photo = read_photo(deep_png(colour, chunk(b"tRNS", struct.pack(">HHH", *map(int, colour[4, 7])))))
    np.testing.assert_array_equal(photo.pixels[..., :3], colour)
    np.testing.assert_array_equal(photo.pixels[..., 3] == 0, (colour == colour[4, 7]).all(2))


def test_16_bit_colours_multiplied_by_their_opacity_are_refused_not_reduced() -> None:
    data = encode_tiff(DEEP)
    at = data.index(struct.pack("<HHI", 338, 3, 1)) + 8
    refused = refusal(data[:at] + struct.pack("<H", 1) + data[at + 2 :])
    assert refused.reason_code == "unsupported_pixels"
    assert "16-bit colours cannot be read whole" in str(refused)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_8_bits_keep_their_channels_transparent_colours_included(channels: str, file_format: str) -> None:
    pixels = SHALLOW[..., CHANNELS[channels]]
    options: dict[str, Any] = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    photo = read_photo(file_of(np.ascontiguousarray(pixels), file_format, **options))
    found = photo.pixels
    if file_format == "WEBP" and "gray" in channels:  # which has colours only
        assert not np.ptp(found[..., :3], axis=2).any()
        found = found[..., 0] if channels == "gray" else found[..., [0, 3]]
    np.testing.assert_array_equal(found, pixels)


def test_palettes_and_single_bits_become_colours_and_gray() -> None:
    image = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(read_photo(file_of(image, "PNG")).pixels, np.asarray(image.convert("RGB")))
    clear = read_photo(file_of(image, "PNG", transparency=3))
    np.testing.assert_array_equal(clear.pixels[..., 3] == 0, np.asarray(image) == 3)
    bits = Image.fromarray(picture()).convert("1")
    np.testing.assert_array_equal(read_photo(file_of(bits, "TIFF")).pixels, np.asarray(bits) * np.uint8(255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_pixels_come_upright(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options: dict[str, Any] = {"WEBP": {"lossless": True}}.get(file_format, {})
    data = file_of(picture(), file_format, exif=exif, dpi=(300, 150), **options)
    photo = read_photo(data)
    np.testing.assert_array_equal(photo.pixels, decode(data).pixels)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(turned_back(photo.pixels, orientation), stored)
    assert photo.orientation == orientation
    if photo.dpi is not None:
        assert photo.dpi == pytest.approx((150, 300) if orientation > 4 else (300, 150), rel=1e-4)


def test_date_and_camera_are_kept_and_no_position() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "box camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 30.0, 0.0)
    photo = read_photo(file_of(picture(), "JPEG", exif=exif))
    assert photo.exif is not None
    kept = Image.Exif()
    kept.load(photo.exif)
    assert dict(kept) == {ExifTags.Base.Model: "box camera"}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_all_metadata_is_kept_on_request_without_thumbnail_and_orientation(file_format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    exif[ExifTags.Base.Artist] = "somebody"
    exif[ExifTags.Base.ImageWidth] = 48
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.FNumber: 2.5, ExifTags.Base.MakerNote: b"note"})
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 30.0, 15.5)
    exif.get_ifd(ExifTags.IFD.IFD1)[ExifTags.Base.Compression] = 6
    if file_format == "TIFF":  # Pillow writes no inner directories there
        data = encode_tiff(picture(), exif=exif.tobytes())
    else:
        data = file_of(picture(), file_format, exif=exif)
    photo = read_photo(data, metadata="all")
    kept = Image.Exif()
    kept.load(photo.exif or b"")
    assert set(kept) == {ExifTags.Base.Artist, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2.5
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] == b"note"
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (51.0, 30.0, 15.5)
    assert not kept.get_ifd(ExifTags.IFD.IFD1)


def test_metadata_too_long_for_a_jpeg_is_left_out_but_for_the_date() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "box camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(70_000)
    data = file_of(picture(), "PNG", exif=exif)
    photo = read_photo(data, metadata="all")
    assert photo.exif == read_photo(data).exif
    assert photo.exif
    assert len(photo.notes) == 1
    assert "only date and camera" in photo.notes[0]


def test_a_profile_of_gray_is_kept_beside_gray_pixels_only() -> None:
    gray, colour = SHALLOW[..., 0], np.ascontiguousarray(SHALLOW[..., :3])
    for pixels, space, is_kept in (
        (gray, b"GRAY", True),
        (gray, b"RGB ", True),
        (colour, b"RGB ", True),
        (colour, b"GRAY", False),
    ):
        assert (read_photo(file_of(pixels, "TIFF", icc_profile=profile(space))).icc is not None) == is_kept


@pytest.mark.parametrize(("subsampling", "sampling"), [(0, (1, 1)), (1, (2, 1)), (2, (2, 2))])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_says_how_it_was_encoded(
    subsampling: int, sampling: tuple[int, int], progressive: bool
) -> None:
    data = file_of(picture(), "JPEG", quality=83, subsampling=subsampling, progressive=progressive)
    tables = Image.open(io.BytesIO(data)).quantization  # type: ignore[attr-defined]  # of a JPEG
    expected = tuple(tuple(tables[number]) for number in (0, 1, 1))
    assert read_photo(data).jpeg == JpegCoding(expected, sampling, progressive)


def test_a_jpeg_of_gray_or_of_red_green_and_blue() -> None:
    gray = read_photo(file_of(picture()[..., 0], "JPEG")).jpeg
    assert gray is not None
    assert (len(gray.tables), gray.sampling, gray.rgb) == (1, (1, 1), False)
    rgb = read_photo(file_of(picture(), "JPEG", keep_rgb=True, subsampling=0)).jpeg
    assert rgb is not None
    assert rgb.rgb


def test_what_cannot_be_kept_is_said() -> None:
    cmyk = file_of(Image.fromarray(picture()).convert("CMYK"), "JPEG")
    assert read_photo(cmyk).notes == ("its CMYK pixels became RGB",)
    pnm = b"P6 # deep\n4 3\n65535\n" + DEEP[:3, :4, :3].astype(">u2").tobytes()
    assert read_photo(pnm).notes == ("its 16 bits a channel were reduced to 8",)
    two = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    for file_format in ("GIF", "PNG", "WEBP"):
        frames = file_of(two[0], file_format, save_all=True, append_images=two[1:])
        assert read_photo(frames).notes == ("the first of its pictures was taken; the others are left out",)


def test_gray_of_a_pnm_keeps_16_bits() -> None:
    levels = DEEP[:3, :4, 0]
    photo = read_photo(b"P5 4 3 65535\n" + levels.astype(">u2").tobytes())
    np.testing.assert_array_equal(photo.pixels, levels)


def outcome(data: bytes) -> tuple[Pixels | None, str]:
    """The pixels of `decode`, or the reason of its refusal."""
    try:
        return decode(data, alpha="drop").pixels, ""
    except ImageRefused as refused:
        return None, refused.reason_code


@pytest.mark.parametrize("case", corpus(), ids=lambda case: case.id)
def test_a_file_has_the_fate_that_decode_gives_it(case: Case) -> None:
    """The same refusal, or the same picture in its own depth and channels."""
    expected, reason = outcome(case.data)
    if expected is None:
        assert refusal(case.data).reason_code == reason
        return
    pixels = read_photo(case.data).pixels
    colours = colour_layers(pixels)
    shallow = colours if pixels.dtype == np.uint8 else (colours // 256).astype(np.uint8)
    assert pixels.shape[:2] == expected.shape[:2]
    # of 16 bits, Pillow takes the upper half of a colour and rounds gray
    nearest = 0 if pixels.dtype == np.uint8 else 1
    assert np.abs(shallow.astype(int) - expected).max() <= nearest


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_damaged_16_bit_colours_are_read_or_refused_and_nothing_else(file_format: str) -> None:
    sound = deep_png(DEEP) if file_format == "PNG" else encode_tiff(DEEP)
    draws = np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(sound)
        for at in draws.integers(0, len(data), draws.integers(1, 6)):
            data[at] = draws.integers(0, 256)
        cut = bytes(data[: draws.integers(1, len(data))]) if draws.random() < 0.2 else bytes(data)
        with contextlib.suppress(ImageRefused):
            read_photo(cut, max_pixels=100_000)


def test_limits_and_damage_are_those_of_decode() -> None:
    data = deep_png(DEEP)
    assert refusal(data, max_pixels=100).reason_code == "too_many_pixels"
    assert refusal(data, min_px=64).reason_code == "too_small"
    assert refusal(data[: len(data) // 2]).reason_code in ("truncated", "corrupt")
    assert refusal(b"").reason_code == "empty"
    assert refusal(b"no picture at all").reason_code == "not_an_image"


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixels": np.zeros((2, 2), np.int32)},
        {"pixels": np.zeros((2, 2, 5), np.uint8)},
        {"format": "EXE"},
        {"dpi": (0.0, 72.0)},
        {"orientation": 9},
    ],
)
def test_a_photo_from_another_process_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        SourcePhoto(**{"pixels": np.zeros((2, 2), np.uint8), "format": "PNG", **wrong})
    with pytest.raises(ValueError, match="tables"):
        JpegCoding(((1,) * 63,))


@pytest.mark.parametrize("channels", CHANNELS)
def test_an_encoded_deep_png_is_what_libpng_reads(channels: str) -> None:
    pixels = np.ascontiguousarray(DEEP[..., CHANNELS[channels]])
    pixels[:, 10:] = pixels[:, 10:11]  # both filters have rows where they leave less
    pixels[10:] = pixels[9:10]
    data = encode_deep_png(pixels, file_of(np.zeros((1, 1), np.uint8), "PNG", dpi=(300, 300)))
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    order: Any = {"gray": ..., "gray_alpha": [0, 3], "rgb": [2, 1, 0], "rgba": [2, 1, 0, 3]}[channels]
    np.testing.assert_array_equal(found[..., order] if channels != "gray" else found, pixels)
    assert len(data) < pixels.nbytes / 2
    assert Image.open(io.BytesIO(data)).info["dpi"] == pytest.approx((300, 300), rel=1e-4)
