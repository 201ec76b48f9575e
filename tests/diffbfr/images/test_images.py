"""Decoding and what it tells beside pixels (odd files: `test_image_corpus`); lossless encoders; resizing;
pixels and tensors.
"""

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from diffbfr.errors import DiffBFRError, UsageError
from diffbfr.images import (
    REASONS,
    ImageRefused,
    center_square,
    decode,
    encode_png,
    encode_stored_png,
    encode_webp,
    lq_to_model,
    pixel_digest,
    resize,
    to_pixels,
    to_tensor,
)
from tests.diffbfr.image_corpus import file_of, picture, png_claiming, wide_gamut_profile

ROOT = Path(__file__).parents[3]


def refused(data: bytes, **options: object) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        decode(data, **options)  # type: ignore[arg-type]
    assert caught.value.reason_code in REASONS
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ],
)
def test_lossless_formats_give_their_pixels_back(image_format: str, options: dict[str, object]) -> None:
    decoded = decode(file_of(picture(), image_format, **options))
    assert (decoded.pixels == picture()).all()
    assert (decoded.format, decoded.was_gray, decoded.icc) == (image_format, False, None)
    assert decoded.pixels.flags.c_contiguous


def test_jpeg_gives_nearly_its_pixels_back() -> None:
    decoded = decode(file_of(picture(), "JPEG", quality=98, subsampling=0))
    assert np.abs(decoded.pixels.astype(int) - picture()).mean() < 2
    assert decoded.format == "JPEG"


def test_a_phones_picture_of_pictures_counts_as_jpeg() -> None:
    data = file_of(
        Image.fromarray(picture()),
        "MPO",
        save_all=True,
        append_images=[Image.fromarray(picture())],
        quality=95,
    )
    decoded = decode(data)
    assert decoded.format == "JPEG"
    assert np.abs(decoded.pixels.astype(int) - picture()).mean() < 6


def test_senseless_orientations_leave_the_pixels_as_stored() -> None:
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        assert (decode(file_of(picture(), "PNG", exif=exif)).pixels == picture()).all()
    assert (
        decode(file_of(picture(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).pixels == picture()
    ).all()


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(image_format: str) -> None:
    levels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    levels[-1, -1] = 65535
    decoded = decode(file_of(levels, image_format))
    assert decoded.was_gray
    assert (decoded.pixels[..., 0] == np.round(levels.astype(float) * 255 / 65535)).all()
    assert (decoded.pixels == decoded.pixels[..., :1]).all()


def test_big_endian_and_inverted_sixteen_bit_tiffs_are_understood() -> None:
    levels = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    expected = np.round(levels.astype(float) * 255 / 65535)

    def tiff(order: str, photometric: int, bits: int, strip: bytes) -> bytes:
        tags = [
            (256, 8),
            (257, 6),
            (258, bits),
            (259, 1),
            (262, photometric),
            (273, 8),
            (277, 1),
            (278, 6),
            (279, len(strip)),
        ]
        entries = b"".join(
            struct.pack(f"{order}HHI", tag, 3, 1) + struct.pack(f"{order}H2x", value) for tag, value in tags
        )  # every value is a short
        magic = b"II*\0" if order == "<" else b"MM\0*"
        return (
            magic
            + struct.pack(f"{order}I", 8 + len(strip))
            + strip
            + struct.pack(f"{order}H", len(tags))
            + entries
            + bytes(4)
        )

    assert (decode(tiff(">", 1, 16, levels.astype(">u2").tobytes())).pixels[..., 0] == expected).all()
    assert (decode(tiff("<", 1, 16, levels.astype("<u2").tobytes())).pixels[..., 0] == expected).all()
    assert (decode(tiff("<", 0, 16, levels.astype("<u2").tobytes())).pixels[..., 0] == 255 - expected).all()
    twelve = (levels >> 4).astype(int).reshape(-1, 2)
    packed = (
        np.stack([twelve[:, 0] >> 4, (twelve[:, 0] & 15) << 4 | twelve[:, 1] >> 8, twelve[:, 1] & 255], 1)
        .astype(np.uint8)
        .tobytes()
    )
    assert np.abs(decode(tiff("<", 1, 12, packed)).pixels[..., 0] - expected).max() <= 1


def test_deep_and_transparent_pictures_need_no_more_memory_than_their_pixels_must() -> None:
    deep = file_of(np.zeros((1000, 1000), np.uint16), "PNG")
    clear = file_of(np.zeros((1000, 1000, 4), np.uint8), "PNG")
    for data, bytes_a_pixel in (
        (deep, 8),
        (clear, 16),
    ):  # beside Pillow's own: 2 read, 3 made; 4 read, 6 to blend in, 3 made
        tracemalloc.start()
        decode(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < bytes_a_pixel * 1000 * 1000


def test_sixteen_bit_colour_keeps_its_range() -> None:
    levels = np.linspace(0, 65535, 8 * 6 * 3, dtype=np.uint16).reshape(6, 8, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    plain = png_claiming(8, 6)
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    data = plain[:8]
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    assert np.abs(decode(data).pixels - levels.astype(float) * 255 / 65535).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bit_pixels_have_no_white_and_are_refused(mode: str) -> None:
    assert refused(file_of(Image.new(mode, (4, 4)), "TIFF")).reason_code == "unsupported_pixels"


def test_palette_and_bilevel_pictures_become_rgb() -> None:
    paletted = Image.fromarray(picture()).quantize(64)
    for image_format in ("PNG", "GIF", "BMP", "TIFF"):
        assert (decode(file_of(paletted, image_format)).pixels == np.array(paletted.convert("RGB"))).all(), (
            image_format
        )
    checks = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")
    decoded = decode(file_of(checks, "PNG"))
    assert decoded.was_gray
    assert set(np.unique(decoded.pixels)) == {0, 255}


def test_gray_is_what_the_pixels_say_however_they_were_stored() -> None:
    gray = picture()[..., :1].repeat(3, axis=2)
    for image in (
        Image.fromarray(gray),
        Image.fromarray(gray[..., 0]),
        Image.fromarray(gray[..., 0]).convert("P"),
    ):
        assert decode(file_of(image, "PNG")).was_gray
    tinted = gray.copy()
    tinted[17, 23, 2] ^= 1
    assert not decode(file_of(tinted, "PNG")).was_gray


def test_transparency_follows_the_policy() -> None:
    rgba = np.dstack([picture(), np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))])
    data = file_of(rgba, "PNG")
    share = rgba[..., 3:].astype(float) / 255
    assert np.abs(decode(data).pixels - (rgba[..., :3] * share + 255 * (1 - share))).max() <= 0.5
    assert np.abs(decode(data, alpha="black").pixels - rgba[..., :3] * share).max() <= 0.5
    assert (decode(data, alpha="drop").pixels == picture()).all()
    assert refused(data, alpha="refuse").reason_code == "has_alpha"


def test_an_alpha_channel_that_hides_nothing_is_no_transparency() -> None:
    rgba = np.dstack([picture(), np.full((32, 48), 255, np.uint8)])
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert (decode(file_of(rgba, image_format, **options), alpha="refuse").pixels == picture()).all()


def test_transparency_named_by_a_colour_or_a_palette_entry_follows_the_policy() -> None:
    gray16 = np.full((4, 4), 30000, np.uint16)
    gray16[0, 0] = 12345
    paletted = Image.new("RGB", (4, 4), (9, 8, 7)).quantize(2)
    keyed = [
        file_of(paletted, "PNG", transparency=paletted.getpixel((0, 0))),
        file_of(paletted, "GIF", transparency=paletted.getpixel((0, 0))),
        file_of(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        file_of(Image.new("L", (4, 4), 7), "PNG", transparency=7),
        file_of(gray16, "PNG", transparency=12345),
        file_of(Image.merge("LA", [Image.new("L", (4, 4), 80), Image.new("L", (4, 4), 0)]), "PNG"),
    ]
    for data in keyed:
        assert (decode(data).pixels[0, 0] == 255).all()
        assert (decode(data, alpha="black").pixels[0, 0] == 0).all()
        assert refused(data, alpha="refuse").reason_code == "has_alpha"


def test_a_profile_is_kept_where_it_describes_the_pixels_and_only_there() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(file_of(picture(), "PNG", icc_profile=srgb)).icc == srgb
    assert decode(file_of(picture(), "JPEG", icc_profile=srgb)).icc == srgb
    assert decode(file_of(Image.fromarray(picture()).convert("CMYK"), "JPEG", icc_profile=srgb)).icc is None
    gray_profile = srgb[:16] + b"GRAY" + srgb[20:]
    assert decode(file_of(picture()[..., 0], "PNG", icc_profile=gray_profile)).icc is None


def test_a_wide_profile_is_handed_on_and_not_applied() -> None:
    wide = wide_gamut_profile()
    opened = ImageCms.ImageCmsProfile(io.BytesIO(wide))
    converted = ImageCms.profileToProfile(Image.fromarray(picture()), opened, ImageCms.createProfile("sRGB"))
    assert np.abs(np.asarray(converted).astype(int) - picture()).max() > 20  # what applying it would do
    decoded = decode(file_of(picture(), "PNG", icc_profile=wide))
    assert decoded.icc == wide
    assert (decoded.pixels == picture()).all()


def test_a_cut_png_is_accepted_only_with_every_pixel() -> None:
    data = file_of(picture(), "PNG")
    accepted = 0
    for size in range(8, len(data)):
        try:
            pixels = decode(data[:size]).pixels
        except ImageRefused:
            continue
        assert (pixels == picture()).all()
        accepted += 1
    assert accepted < 24  # the checksum and the end mark: pixels were complete before


def test_a_damaged_file_is_refused_as_corrupt() -> None:
    data = bytearray(encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    data[len(data) // 2] ^= 0xFF
    assert refused(bytes(data)).reason_code == "corrupt"
    header = bytearray(file_of(picture(), "PNG"))
    header[17] ^= 1
    assert refused(bytes(header)).reason_code == "corrupt"


def test_the_caps_are_the_callers() -> None:
    data = file_of(picture(48, 32), "PNG")
    assert decode(data, max_pixels=48 * 32).pixels.shape == (32, 48, 3)
    assert refused(data, max_pixels=48 * 32 - 1).reason_code == "too_many_pixels"
    assert decode(data, min_px=32).pixels.shape == (32, 48, 3)
    assert refused(data, min_px=33).reason_code == "too_small"


def test_damaged_bytes_are_decoded_or_refused_and_nothing_else() -> None:
    rng = random.Random(0)
    originals = [
        file_of(picture(), "PNG"),
        file_of(picture(), "JPEG"),
        file_of(Image.fromarray(picture()).convert("CMYK"), "JPEG"),
        file_of(picture(), "WEBP"),
        file_of(picture(), "BMP"),
        file_of(picture(), "TIFF"),
        file_of(Image.fromarray(picture()).quantize(16), "GIF"),
        file_of(np.full((8, 8), 999, np.uint16), "PNG", transparency=999),
    ]
    outcomes = []
    for data in originals:
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                outcomes.append(str(decode(bytes(damaged), max_pixels=1_000_000).pixels.dtype))
            except ImageRefused as refusal:
                outcomes.append(refusal.reason_code)
    assert set(outcomes) <= {"uint8", *REASONS}
    assert len(set(outcomes)) > 3


def test_a_refusal_travels_between_processes() -> None:
    refusal = pickle.loads(pickle.dumps(ImageRefused("truncated", "the file ends early")))
    assert (refusal.reason_code, str(refusal), refusal.exit_code) == ("truncated", "the file ends early", 1)


@pytest.mark.parametrize(
    ("encode", "magic"), [(encode_png, b"\x89PNG"), (encode_stored_png, b"\x89PNG"), (encode_webp, b"RIFF")]
)
def test_encoders_are_lossless_and_repeat_themselves(encode: object, magic: bytes) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for pixels in (picture(), noise, noise[::-1, ::2], np.zeros((1, 1, 3), np.uint8)):
        data = encode(pixels)  # type: ignore[operator]
        assert data.startswith(magic)
        assert (decode(data).pixels == pixels).all()
        assert data == encode(pixels.copy())  # type: ignore[operator]


OUTPUTS_PROGRAM = """
import hashlib
import numpy as np
from diffbfr.images import encode_png, encode_webp, resize
y, x = np.mgrid[0:64, 0:64]
face = np.stack([4 * x, 4 * y, 2 * (x + y)], axis=2).astype(np.uint8)
resized = [resize(face, px, kernel) for px in (16, 100) for kernel in ("bilinear", "bicubic")]
print(hashlib.sha256(b"".join([encode_png(face), encode_webp(face), *(each.tobytes() for each in resized)])).hexdigest())
"""


def test_encoders_and_resizes_give_the_same_bytes_in_another_process_with_fewer_instructions() -> None:
    core = np._core._multiarray_umath
    fewer = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(
            name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)
        )
    }
    digests = {
        subprocess.run(
            [sys.executable, "-c", OUTPUTS_PROGRAM],
            env={**os.environ, **switches},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for switches in ({}, fewer)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_resize_is_antialiased_and_keeps_flat_colour(kernel: str) -> None:
    flat = np.full((64, 64, 3), (10, 100, 200), np.uint8)
    assert (resize(flat, 13, kernel) == (10, 100, 200)).all()  # type: ignore[arg-type]
    checks = np.repeat((np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    small = resize(checks, 16, kernel).astype(int)  # type: ignore[arg-type]
    assert (
        np.abs(small[2:-2, 2:-2] - 127.5).max() < 4
    )  # without antialiasing a checkerboard turns black, white or striped


@pytest.mark.parametrize(("kernel", "reach"), [("bilinear", 1.0), ("bicubic", 2.0)])
def test_resize_matches_the_kernels_own_formula(kernel: str, reach: float) -> None:
    """The weights of Pillow's kernels by hand, for halving one row."""
    row = np.random.default_rng(3).integers(0, 256, 32)
    stacked = np.repeat(np.tile(row, (32, 1)).astype(np.uint8)[..., None], 3, axis=2)

    def weight(distance: float) -> float:
        d = abs(distance)
        if kernel == "bilinear":
            return max(0.0, 1 - d)
        return (
            1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else (-0.5 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0)
        )

    result = resize(stacked, 16, kernel)[8, :, 0]  # type: ignore[arg-type]
    for out in range(4, 12):
        centre = 2 * out + 1
        taps = [
            (index, weight((index + 0.5 - centre) / 2))
            for index in range(32)
            if abs(index + 0.5 - centre) < 2 * reach
        ]
        exact = sum(row[index] * w for index, w in taps) / sum(w for _, w in taps)
        assert abs(float(result[out]) - min(max(exact, 0), 255)) <= 0.75


def test_resize_to_the_same_size_is_a_copy() -> None:
    face = picture(32, 32)
    same = resize(face, 32, "bicubic")
    assert (same == face).all()
    assert same is not face
    assert not np.shares_memory(same, face)


def test_resize_refuses_what_it_would_distort_and_kernels_it_does_not_know() -> None:
    with pytest.raises(ImageRefused, match="48 x 32") as caught:
        resize(picture(48, 32), 16, "bilinear")
    assert caught.value.reason_code == "not_square"


def test_an_unknown_kernel_is_refused_by_name() -> None:
    program = "import numpy, diffbfr.images as i; i.resize(numpy.zeros((4, 4, 3), 'uint8'), 2, 'lanczos')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (
        f"{UsageError.__name__}: resize kernel 'lanczos' is unknown; expected one of bilinear, bicubic"
        in done.stderr
    )


def test_center_square_cuts_the_middle() -> None:
    assert (center_square(picture(48, 32)) == picture(48, 32)[:, 8:40]).all()
    assert (center_square(picture(32, 49)) == picture(32, 49)[8:40]).all()
    assert (center_square(picture(32, 32)) == picture(32, 32)).all()


def test_a_low_quality_picture_reaches_the_model_by_one_bilinear_resize() -> None:
    face = picture(40, 40)
    assert (lq_to_model(face, 32) == resize(face, 32, "bilinear")).all()
    assert (lq_to_model(face, 128) == resize(face, 128, "bilinear")).all()


def test_every_level_survives_the_way_to_a_tensor_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = to_tensor(levels)
    assert tensor.dtype == torch.float32
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert (to_pixels(tensor)[0] == levels).all()
    assert (to_pixels(tensor.to(torch.bfloat16).double())[0].astype(int) - levels).max() <= 1


def test_pictures_of_different_sizes_are_no_batch() -> None:
    with pytest.raises(
        ValueError, match=r"the pictures of a batch are \(4, 4, 3\) and \(8, 8, 3\); expected one size"
    ):
        to_tensor([np.zeros((px, px, 3), np.uint8) for px in (8, 4, 8)])
    with pytest.raises(ValueError, match="the pictures of a batch are none; expected one size"):
        to_tensor([])


def test_tensors_are_channels_first_batches() -> None:
    one, two = picture(8, 6), picture(8, 6)[::-1]
    for batch in ([one, two], (one, two), np.stack([one, two])):
        tensor = to_tensor(batch)
        assert tensor.shape == (2, 3, 6, 8)
        assert (to_pixels(tensor) == np.stack([one, two])).all()
    assert to_tensor(one).shape == (1, 3, 6, 8)
    assert to_tensor(one)[0, 2, 5, 7].item() == pytest.approx(int(one[5, 7, 2]) / 127.5 - 1)


def test_to_pixels_clamps_and_rounds_to_nearest() -> None:
    values = (
        torch.tensor([-3.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1.0, 2.0])
        .view(1, 1, 1, 6)
        .expand(1, 3, 1, 6)
    )
    assert to_pixels(values)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_to_pixels_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(DiffBFRError, match="NaN or infinity"):
        to_pixels(torch.full((1, 3, 2, 2), value))


def test_wrong_shapes_are_refused() -> None:
    for shape in ((4, 4), (4, 4, 4), (1, 1, 4, 4, 3)):
        with pytest.raises(ValueError, match="expected uint8"):
            to_tensor(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="expected uint8 h w 3"):
        encode_png(np.zeros((4, 4), np.uint8))


def test_pixel_digest_is_of_pixels_and_shape_alone() -> None:
    face = picture(8, 8)
    assert (
        pixel_digest(face)
        == pixel_digest(decode(encode_png(face)).pixels)
        == pixel_digest(decode(encode_webp(face)).pixels)
    )
    assert pixel_digest(face[::-1][::-1]) == pixel_digest(face)
    assert (
        len(
            {
                pixel_digest(face),
                pixel_digest(face[::-1]),
                pixel_digest(face.reshape(4, 16, 3)),
                pixel_digest(face[:4]),
            }
        )
        == 4
    )


def test_decoding_needs_no_torch() -> None:
    program = "import sys, diffbfr.images; print(sorted({'torch', 'cv2'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
