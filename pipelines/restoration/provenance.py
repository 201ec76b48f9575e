"""What a restored PNG says about itself: an XMP packet that names it a composite with trained algorithmic
media, and what made it.

`Iptc4xmpExt:DigitalSourceType` is the IPTC's term for a real photo that a trained model changed; viewers and
platforms read it. The project's own fields give the digests of the cascade and of the input, so that a
picture found anywhere can be traced in a ledger.
"""

import struct
import zlib
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from diffbfr import __version__

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
NAMESPACE = "urn:diffbfr:restoration:1.0:"
_KEYWORD = b"XML:com.adobe.xmp"
_SIGNATURE_BYTES, _LENGTH_BYTES, _CHUNK_FRAME_BYTES = 8, 4, 12


@dataclass(frozen=True)
class Provenance:
    """What made a picture: digests of the cascade and of the input's bytes, the sampling mode and the
    seed.
    """

    model_digest: str
    input_sha256: str
    mode: str
    seed: int

    def xmp(self) -> str:
        """Write the XMP packet."""
        fields = {
            "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
            "xmp:CreatorTool": f"diffbfr {__version__}",
            "diffbfr:ModelDigest": self.model_digest,
            "diffbfr:InputSha256": self.input_sha256,
            "diffbfr:Mode": self.mode,
            "diffbfr:Seed": str(self.seed),
        }
        attributes = "".join(f"\n   {name}={quoteattr(value)}" for name, value in fields.items())
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
            ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
            '  <rdf:Description rdf:about=""\n'
            '   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"\n'
            '   xmlns:xmp="http://ns.adobe.com/xap/1.0/"\n'
            f'   xmlns:diffbfr="{NAMESPACE}"{attributes}/>\n'
            " </rdf:RDF>\n"
            "</x:xmpmeta>\n"
            '<?xpacket end="r"?>'
        )


def sign_png(png: bytes, provenance: Provenance, icc: bytes | None = None) -> bytes:
    """Put the packet into a PNG, as an uncompressed iTXt chunk right after the header, where XMP belongs, and
    the input's colour profile.

    A cascade keeps the values that a file stores (`diffbfr.images.decode`), and so what they mean: the
    profile goes on with them.
    """
    header_bytes = struct.unpack_from(">I", png, _SIGNATURE_BYTES)[0]
    end = _SIGNATURE_BYTES + _CHUNK_FRAME_BYTES + header_bytes
    # keyword, no compression (flag and method), no language, no translated keyword
    chunks = [_chunk(b"iTXt" + _KEYWORD + b"\0\0\0\0\0" + provenance.xmp().encode())]
    if icc is not None:
        chunks.append(_chunk(b"iCCPICC profile\0\0" + zlib.compress(icc)))  # name, deflate
    return png[:end] + b"".join(chunks) + png[end:]


def _chunk(body: bytes) -> bytes:
    """Frame a chunk: length, kind and data, checksum."""
    return struct.pack(">I", len(body) - _LENGTH_BYTES) + body + struct.pack(">I", zlib.crc32(body))
