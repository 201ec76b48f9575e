"""Provenance of a restored image: an XMP packet that declares it a composite with trained algorithmic media.

`Iptc4xmpExt:DigitalSourceType` is the IPTC term for a photo that a trained model changed; viewers and
platforms read it. The project's own fields hold the digests of the cascade and of the input, so that an image
can be traced to its row in a ledger.
"""

import io
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffbfr import __version__
from diffbfr.images import CODECS, Pixels

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
NAMESPACE = "urn:diffbfr:restoration:1.0:"
XMP_KEYWORD = "XML:com.adobe.xmp"


@dataclass(frozen=True)
class Provenance:
    """Digests of the cascade and of the input file, the sampling mode and the seed of a restored image.

    `licences` are those of weights in the cascade that others trained (`diffbfr.origin.licences`).
    """

    model_digest: str
    input_sha256: str
    mode: str
    seed: int
    licences: tuple[str, ...] = ()

    def xmp(self) -> str:
        """The XMP packet."""
        fields = {
            "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
            "xmp:CreatorTool": f"diffbfr {__version__}",
            "diffbfr:ModelDigest": self.model_digest,
            "diffbfr:InputSha256": self.input_sha256,
            "diffbfr:Mode": self.mode,
            "diffbfr:Seed": str(self.seed),
        }
        if self.licences:
            fields["diffbfr:ModelLicences"] = " | ".join(self.licences)
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


def encode_signed_png(
    pixels: Pixels,
    provenance: Provenance,
    icc: bytes | None = None,
    *,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    alpha: Pixels | None = None,
) -> bytes:
    """Encode uint8 pixels (h w 3) as a PNG with the XMP packet and what is kept of the input.

    The packet is an uncompressed iTXt chunk, as XMP prescribes for PNG. A cascade keeps the values that the
    input file stores (`diffbfr.images.decode`), so the profile that gives them their meaning is copied.
    `alpha` (h w) is the opacity, `exif` a block that may be passed on (`diffbfr.images.metadata`).
    """
    info = PngInfo()
    info.add_itxt(XMP_KEYWORD, provenance.xmp())
    options: dict[str, Any] = {"icc_profile": icc, "exif": exif, "dpi": dpi}
    given = {name: value for name, value in options.items() if value is not None}
    shown = pixels if alpha is None else np.dstack([pixels, alpha])
    buffer = io.BytesIO()
    level = CODECS["png"]["compress_level"]
    Image.fromarray(shown).save(buffer, format="PNG", compress_level=level, pnginfo=info, **given)
    return buffer.getvalue()
