"""The packet sits where readers of XMP look, parses, and leaves the pixels alone."""

import io
import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
from PIL import Image, ImageCms

from pipelines.restoration.provenance import Provenance, encode_signed_png

PROVENANCE = Provenance(model_digest="d1" * 32, input_sha256="ab" * 32, mode="fast", seed=7)
PIXELS = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)


def test_signing_leaves_the_pixels_alone_and_is_deterministic() -> None:
    signed = encode_signed_png(PIXELS, PROVENANCE)

    assert signed == encode_signed_png(PIXELS, PROVENANCE)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(signed))), PIXELS)


def test_every_chunk_has_its_length_and_checksum_and_the_packet_follows_the_header() -> None:
    signed, position, kinds = encode_signed_png(PIXELS, PROVENANCE), 8, []
    while position < len(signed):
        length = struct.unpack_from(">I", signed, position)[0]
        body = signed[position + 4 : position + 8 + length]
        assert struct.unpack_from(">I", signed, position + 8 + length)[0] == zlib.crc32(body)
        kinds.append(body[:4])
        position += 12 + length
    assert kinds[:2] == [b"IHDR", b"iTXt"]
    assert kinds[-1] == b"IEND"


def test_the_inputs_colour_profile_goes_on_with_its_values() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    signed = encode_signed_png(PIXELS, PROVENANCE, profile)
    with Image.open(io.BytesIO(signed)) as picture:
        assert picture.info["icc_profile"] == profile
        assert "InputSha256" in picture.info["XML:com.adobe.xmp"]
        np.testing.assert_array_equal(np.asarray(picture), PIXELS)
    assert (
        len(zlib.compress(profile)) < len(signed) - len(encode_signed_png(PIXELS, PROVENANCE)) < len(profile)
    )


def test_the_packet_names_the_kind_of_picture_and_what_made_it() -> None:
    packet = Image.open(io.BytesIO(encode_signed_png(PIXELS, PROVENANCE))).info["XML:com.adobe.xmp"]
    description = ElementTree.fromstring(packet.encode()).find(
        ".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )

    assert description is not None
    kind = description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert kind == "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    own = {
        name: description.get(f"{{urn:diffbfr:restoration:1.0:}}{name}")
        for name in ("ModelDigest", "InputSha256", "Mode", "Seed")
    }
    assert own == {"ModelDigest": "d1" * 32, "InputSha256": "ab" * 32, "Mode": "fast", "Seed": "7"}


def test_what_goes_into_the_packet_is_escaped() -> None:
    packet = Provenance(model_digest='"<&>', input_sha256="", mode="fast", seed=0).xmp()
    assert 'ModelDigest="' not in packet
    ElementTree.fromstring(packet.encode())
