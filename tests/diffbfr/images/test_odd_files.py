"""Sound pictures in files that cameras, browsers and converters leave: read, or refused for the right reason."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from diffbfr.images import ImageRefused, Pixels, decode
from tests.diffbfr.image_corpus import chunk, file_of, picture, png

ROWS = b"".join(b"\0" + row.tobytes() for row in picture())
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def refusal(data: bytes) -> str:
    with pytest.raises(ImageRefused) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return caught.value.reason_code


def with_wrong_checksum(kind: bytes, body: bytes) -> bytes:
    made = chunk(kind, body)
    return made[:-1] + bytes([made[-1] ^ 1])


def damaged(data: bytes, kind: bytes) -> bytes:
    """A PNG with another checksum after the first chunk of a kind."""
    at = data.index(kind)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


@pytest.mark.parametrize(
    "extra",
    [
        with_wrong_checksum(b"pHYs", struct.pack(">IIB", 3000, 3000, 1)),
        with_wrong_checksum(b"gAMA", struct.pack(">I", 45455)),
        with_wrong_checksum(b"eXIf", b"II*\0\x08\0\0\0\0\0"),
        with_wrong_checksum(b"tEXt", b"Comment\0hello"),
        with_wrong_checksum(b"acTL", struct.pack(">II", 1, 0)),
        with_wrong_checksum(b"prVt", b"of a program"),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes((1 << 20) + 1))),
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes((1 << 20) + 1))),
        chunk(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes((1 << 20) + 1))),
        chunk(b"iTXt", b"x\0\0\0\0\0" + b"a" * ((1 << 20) + 1)),
        chunk(b"tEXt", b"x\0" + b"a" * ((1 << 20) + 1)),
        chunk(b"iCCP", b"x\0\0no deflate stream"),
        chunk(b"iCCP", b"x"),
        b"".join(chunk(b"tEXt", b"x\0" + b"a" * 1_000_000) for _ in range(70)),
        chunk(b"fcTL", b"too short"),
        chunk(b"pHYs", b""),
    ],
    ids=range(16),
)
def test_an_ancillary_png_chunk_that_cannot_be_used_is_left_out_with_a_note(extra: bytes) -> None:
    decoded = decode(png(48, 32, ROWS, 8, 2, extra))
    assert np.array_equal(decoded.pixels, picture())
    assert len(decoded.notes) == 1
    assert "PNG chunks were left out" in decoded.notes[0]


def test_an_ancillary_png_chunk_of_the_largest_size_is_kept_without_a_note() -> None:
    profile = bytes(16) + b"RGB " + bytes((1 << 20) - 20)
    decoded = decode(png(48, 32, ROWS, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))))
    assert decoded.icc == profile
    assert decoded.notes == ()


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_a_chunk_that_makes_pixels_is_refused(kind: bytes) -> None:
    data = file_of(Image.fromarray(picture()).quantize(16), "PNG")
    assert refusal(damaged(data, kind)) == "corrupt"


def test_transparency_with_a_wrong_checksum_is_left_out_and_said() -> None:
    data = file_of(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    decoded = decode(damaged(data, b"tRNS"))
    assert decoded.pixels[0, 0].tolist() == [9, 8, 7]
    assert "tRNS (wrong checksum)" in decoded.notes[0]


def test_of_an_animated_png_with_a_damaged_frame_the_first_frame_is_read() -> None:
    frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
    data = file_of(frames[0], "PNG", save_all=True, append_images=frames[1:])
    for kind in (b"fcTL", b"fdAT", b"acTL"):
        assert np.array_equal(decode(damaged(data, kind)).pixels, NOISE)


@pytest.mark.parametrize("num_missing", [4, 12, 13])
def test_a_png_that_lacks_only_its_end_is_read(num_missing: int) -> None:
    """Of the end chunk (12 bytes), and one byte of the checksum before it."""
    assert np.array_equal(decode(file_of(NOISE, "PNG")[:-num_missing]).pixels, NOISE)


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {"quality": 95},
    "subsampled": {"quality": 80, "subsampling": 2},
    "progressive": {"quality": 90, "progressive": True},
    "optimized": {"quality": 60, "optimize": True},
    "restart-rows": {"quality": 90, "restart_marker_rows": 1},
    "restart-blocks": {"quality": 90, "restart_marker_blocks": 3},
}
MODES = {"colour": "RGB", "gray": "L", "cmyk": "CMYK"}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_that_lacks_only_its_end_marker_is_the_whole_one_and_a_cut_one_is_refused(
    options: dict[str, Any], mode: str
) -> None:
    whole = file_of(Image.fromarray(NOISE).convert(mode), "JPEG", **options)
    expected = decode(whole).pixels
    for ending in (b"", b"\xff", bytes(2), bytes(5000)):
        decoded = decode(whole[:-2] + ending)
        assert np.array_equal(decoded.pixels, expected)
        assert decoded.notes == ()
    for kept in (0.4, 0.7, 0.9, 0.98):
        cut = whole[: int(len(whole) * kept)]
        assert refusal(cut) == "truncated"
        assert refusal(cut + bytes(5000)) == "truncated"


def test_a_jpeg_cut_at_any_of_its_last_bytes_is_never_a_guess() -> None:
    for options in JPEGS.values():
        whole = file_of(NOISE[:24, :24], "JPEG", **options)
        expected = decode(whole).pixels
        for missing in range(3, 200):
            with contextlib.suppress(ImageRefused):
                # the last bytes may be filling, and parts of the last unit lie outside the picture
                assert np.array_equal(decode(whole[:-missing]).pixels, expected)


def test_a_progressive_jpeg_that_ends_between_two_passes_is_refused() -> None:
    whole = file_of(NOISE, "JPEG", quality=90, progressive=True)
    passes = [at for at in range(len(whole) - 1) if whole[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    assert len(passes) > 6
    for at in passes[3:]:
        assert refusal(whole[:at]) == "truncated"


def tiff_pages(*pages: tuple[Image.Image, dict[int, int]]) -> bytes:
    """A TIFF whose pages have further tags."""
    buffer = io.BytesIO()
    first, tags = pages[0]
    images = []
    for image, more in pages[1:]:
        image.encoderinfo = {"tiffinfo": more}
        images.append(image)
    first.save(buffer, "TIFF", save_all=True, append_images=images, tiffinfo=tags)
    return buffer.getvalue()


def flat(level: int, px: int) -> Image.Image:
    return Image.new("RGB", (px, px), (level, level, level))


def test_of_a_tiff_the_largest_page_is_read_that_is_no_reduced_version_or_mask() -> None:
    thumbnail, photo = (flat(10, 16), {254: 1}), (flat(20, 64), {254: 0})
    for pages in ((thumbnail, photo), (photo, thumbnail), ((flat(10, 16), {}), (flat(20, 64), {}))):
        assert decode(tiff_pages(*pages)).pixels[0, 0, 0] == 20
    assert "page 2 of 2" in decode(tiff_pages(thumbnail, photo)).notes[0]
    assert decode(tiff_pages(photo, thumbnail)).notes == ()
    pages = (
        (flat(10, 99), {254: 1}),
        (flat(20, 64), {254: 2}),
        (flat(30, 64), {254: 2}),
        (flat(40, 99), {254: 4}),
    )
    assert decode(tiff_pages(*pages)).pixels[0, 0, 0] == 20
    assert decode(tiff_pages((flat(10, 16), {255: 2}), (flat(20, 64), {255: 1}))).pixels.shape == (64, 64, 3)
    assert decode(tiff_pages((flat(10, 16), {254: 1}), (flat(20, 32), {254: 1}))).pixels.shape == (32, 32, 3)


def test_a_big_tiff_is_read_and_its_pages_too() -> None:
    data = file_of(flat(10, 16), "TIFF", big_tiff=True, save_all=True, append_images=[flat(20, 64)])
    assert data[:4] == b"II+\0"
    assert decode(data).pixels.shape == (64, 64, 3)


def test_a_tiff_whose_pages_form_a_loop_is_read() -> None:
    data = bytearray(tiff_pages((flat(10, 16), {}), (flat(20, 64), {})))
    (first,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * num_tags)
    (num_tags,) = struct.unpack_from("<H", data, second)
    struct.pack_into("<I", data, second + 2 + 12 * num_tags, first)
    assert decode(bytes(data)).pixels.shape == (64, 64, 3)


def tiff_with_tag(tag: int, kind: int, value: int) -> bytes:
    """A TIFF of one page whose last tag is replaced by another."""
    data = bytearray(file_of(flat(10, 16), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, first)
    places = [first + 2 + 12 * number for number in range(num_tags)]
    known = {struct.unpack_from("<H", data, place)[0]: place for place in places}
    struct.pack_into("<HHII", data, known.get(tag, places[-1]), tag, kind, 1, value)
    return bytes(data)


def test_pixels_that_no_decoder_here_reads_are_named_and_not_called_damaged() -> None:
    floats = file_of(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    assert refusal(floats) == "unsupported_pixels"
    assert refusal(tiff_with_tag(339, 3, 3)) == "unsupported_pixels"
    jpeg = bytearray(file_of(NOISE, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    for marker, bits in ((0xC1, 12), (0xC1, 16), (0xC3, 8), (0xF7, 8)):
        jpeg[at + 1], jpeg[at + 4] = marker, bits
        assert refusal(bytes(jpeg)) == "unsupported_pixels"
    bmp = bytearray(file_of(NOISE, "BMP"))
    bmp[28] = 2  # bits a pixel
    assert refusal(bytes(bmp)) == "unsupported_pixels"
    assert refusal(b"Pf\n8 8\n-1.0\n" + bytes(256)) == "unsupported_format"


@pytest.mark.parametrize("tag", [(50706, 1, 0x0401), (262, 3, 32803), (262, 3, 34892)])
def test_a_raw_file_is_an_unsupported_format(tag: tuple[int, int, int]) -> None:
    assert refusal(tiff_with_tag(*tag)) == "unsupported_format"


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("camera's raw", b"II*\0\x10\0\0\0CR\x02\0" + bytes(4) + b"\1\0" + struct.pack("<HHII", 256, 4, 1, 8) + bytes(4)),
        ("camera's raw", b"FUJIFILMCCD-RAW 0201" + bytes(40)),
        ("camera's raw", b"IIU\0\x18\0\0\0" + bytes(40)),
        ("camera's raw", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
        ("HEIC", b"\0\0\0\x18ftypheix\0\0\0\0mif1heic"),
        ("video", b"\0\0\0\x18ftypisom\0\0\0\0isommp41"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("JPEG XR", b"II\xbc\x01" + bytes(40)),
        ("SVG", b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("SVG", b"\xef\xbb\xbf  <svg/>"),
        ("PDF", b"%PDF-1.7"),
        ("PAM", b"P7\nWIDTH 4\n"),
        ("Photoshop", b"8BPS\0\1" + bytes(30)),
        ("a cursor", b"\0\0\2\0\1\0" + bytes(40)),
    ],
)  # fmt: skip
def test_a_known_format_that_is_not_read_is_named(what: str, data: bytes) -> None:
    with pytest.raises(ImageRefused, match=what) as caught:
        decode(data)
    assert caught.value.reason_code == "unsupported_format"


def near(found: Pixels, tolerance: float = 0.0) -> bool:
    return found.shape == picture().shape and np.abs(found.astype(int) - picture()).mean() <= tolerance


def test_pnm_of_every_kind_is_read() -> None:
    gray = picture()[..., 0]
    assert near(decode(file_of(picture(), "PPM")).pixels)
    plain = "P3 # by hand\n48 32\n255\n" + " ".join(map(str, picture().ravel()))
    assert near(decode(plain.encode()).pixels)
    deep = b"P6 48 32 65535\n" + (picture().astype(">u2") * 257).tobytes()
    assert near(decode(deep).pixels, 1)
    for data in (file_of(gray, "PPM"), b"P5 48 32 65535\n" + (gray.astype(">u2") * 257).tobytes()):
        assert np.array_equal(decode(data).pixels, gray[..., None].repeat(3, axis=2))
    bilevel = file_of(Image.fromarray(gray).convert("1"), "PPM")
    assert bilevel[:2] == b"P4"
    assert set(np.unique(decode(bilevel).pixels)) == {0, 255}
    assert refusal(deep[:-100]) == "truncated"


def test_tga_of_every_kind_is_read() -> None:
    for options in ({}, {"compression": "tga_rle"}):
        data = file_of(picture(), "TGA", **options)
        assert near(decode(data).pixels)
        assert near(decode(data[:-26]).pixels)  # of version 1: without the mark at its end
    gray = Image.fromarray(picture()).convert("L")
    assert np.array_equal(decode(file_of(gray, "TGA")).pixels[..., 0], np.asarray(gray))
    unset = file_of(np.dstack([picture(), np.zeros((32, 48), np.uint8)]), "TGA")
    assert near(decode(unset).pixels)
    assert refusal(file_of(picture(), "TGA")[:-800]) == "not_an_image"


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_jpeg_2000_is_read_as_a_file_and_as_a_codestream() -> None:
    for name, start in (("a.jp2", b"\0\0\0\x0cjP"), ("a.j2k", b"\xff\x4f")):
        buffer = io.BytesIO()
        buffer.name = name
        Image.fromarray(picture()).save(buffer, "JPEG2000")
        assert buffer.getvalue().startswith(start)
        assert near(decode(buffer.getvalue()).pixels)
        assert refusal(buffer.getvalue()[:-100]) in ("truncated", "corrupt")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_whatever_its_main_brand() -> None:
    data = file_of(picture(), "AVIF", quality=95)
    assert near(decode(data).pixels, 4)
    assert near(decode(data.replace(b"ftypavif", b"ftypmif1", 1)).pixels, 4)
    frames = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    sequence = file_of(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=95)
    assert sequence[8:12] == b"avis"
    assert near(decode(sequence).pixels, 4)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(file_of(picture(), "AVIF", exif=turned)).pixels.shape == (48, 32, 3)
    assert refusal(data[: len(data) // 2]) == "truncated"
    assert refusal(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(100)) == "unsupported_format"


def test_date_and_camera_are_kept_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "Maker", "Model 7", "2019:05:04 03:02:01"
    exif[0x013B], exif[0x8298] = "An Artist", "a copyright"
    shot = exif.get_ifd(0x8769)
    shot.update({0x9003: "2018:01:02 03:04:05", 0x9011: "+02:00", 0xA434: "50 mm", 0xA431: "serial 77"})
    shot.update({0x927C: b"a maker's note", 0xA430: "the owner", 0xA435: "lens serial"})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        kept = decode(file_of(picture(), image_format, exif=exif)).exif
        assert kept is not None
        read = Image.Exif()
        read.load(kept)
        taken = {0x9003: "2018:01:02 03:04:05", 0x9011: "+02:00", 0xA434: "50 mm"}
        # Pillow writes no such block into a TIFF
        assert dict(read.get_ifd(0x8769)) == ({} if image_format == "TIFF" else taken)
        assert {tag: read[tag] for tag in read if tag != 0x8769} == {
            0x010F: "Maker",
            0x0110: "Model 7",
            0x0132: "2019:05:04 03:02:01",
        }
        for secret in (b"serial", b"owner", b"Artist", b"copyright", b"note", b"lens"):
            assert secret not in kept
    assert decode(file_of(picture(), "JPEG")).exif is None


def test_the_density_is_kept_where_the_file_says_it() -> None:
    assert decode(file_of(picture(), "JPEG", dpi=(300, 240))).dpi == (300, 240)
    assert decode(file_of(picture(), "PNG", dpi=(300, 300))).dpi == pytest.approx((300, 300), abs=0.02)
    assert decode(file_of(picture(), "JPEG")).dpi is None
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    assert decode(file_of(picture(), "JPEG", exif=exif)).dpi is None


def test_a_profile_over_1_mib_is_left_out_of_every_format_with_a_note() -> None:
    profile = bytes(16) + b"RGB " + bytes(1_500_000)
    for image_format in ("JPEG", "TIFF", "WEBP"):
        decoded = decode(file_of(picture(), image_format, icc_profile=profile))
        assert decoded.icc is None
        assert "colour profile of 1500020 bytes" in decoded.notes[0]
