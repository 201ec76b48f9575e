"""Protocol cards: everything that a figure depends on besides the restorations themselves.

Papers report different numbers for the same method because they differ in one of these points. A result
carries its card, and results of different cards are never compared.
"""

from dataclasses import dataclass
from typing import Final, Literal

from diffbfr.errors import UsageError
from diffbfr.spec import digest

PAIR_METRICS: Final = (
    "psnr",
    "psnr_y",
    "ssim",
    "ssim_y",
    "lpips_alex",
    "lpips_vgg",
    "niqe",
    "identity_cosine",
    "identity_degree",
    "mobilefacenet_cosine",
    "landmark_distance",
    "squeezenet_distance",
    "consistency",
)
"""Metrics with one value a picture."""
SET_METRICS: Final = ("fid", "kid", "frechet_dlib", "frechet_mobilefacenet")
"""Metrics with one value for all pictures together."""


@dataclass(frozen=True)
class ProtocolCard:
    """A protocol of evaluation.

    `num_pairs` and `px` are required of the data; None leaves them to it. `fid_reference` is the set that the
    distribution of the restorations is compared with: the references of the pairs, or another set, of
    `fid_reference_count` pictures, whose statistics are given. `version` rises with every change.
    """

    name: str
    version: str
    data: str
    num_pairs: int | None
    degradation: str
    px: int | None
    crop: str
    colour: str
    fid_reference: Literal["pairs", "ffhq-70k"]
    fid_reference_count: int | None
    metrics: tuple[str, ...] = (*PAIR_METRICS, *SET_METRICS)

    @property
    def digest(self) -> str:
        """Digest of all fields; equal for equal protocols."""
        return digest(self)[:20]


_FRAME: Final = "square face crops aligned to the FFHQ frame; no border is cropped"
_COLOUR: Final = "8-bit RGB as stored, upright; a colour profile is not applied"

PAPER: Final = ProtocolCard(
    name="paper",
    version="1",
    data="CelebA-Test as in DiffBFR (arXiv:2305.04517): 3,000 images of CelebA-HQ, a split of its own",
    num_pairs=3000,
    degradation="Eq. 13: blur 0.1 to 10, reduction 0.8 to 8, noise 0 to 20, JPEG 60 to 100, at 512 px",
    px=512,
    crop=_FRAME,
    colour=_COLOUR,
    fid_reference="pairs",
    fid_reference_count=None,
)
CELEBA_TEST: Final = ProtocolCard(
    name="celeba-test",
    version="1",
    data="CelebA-Test as GFPGAN and VQFR give it: 3,000 images of CelebA-HQ",
    num_pairs=3000,
    degradation="as stored in the published inputs",
    px=512,
    crop=_FRAME,
    colour=_COLOUR,
    fid_reference="ffhq-70k",
    fid_reference_count=70_000,
)
FFHQ_HOLDOUT: Final = ProtocolCard(
    name="ffhq-holdout",
    version="1",
    data="held-out faces of a dataset of `diffbfr shard`, or any pairs of one's own, at their own size",
    num_pairs=None,
    degradation="Eq. 13 as the dataset records it",
    px=None,
    crop=_FRAME,
    colour=_COLOUR,
    fid_reference="pairs",
    fid_reference_count=None,
)
CARDS: Final = {card.name: card for card in (PAPER, CELEBA_TEST, FFHQ_HOLDOUT)}


def find_card(name: str) -> ProtocolCard:
    """The card of that name; UsageError with the names that there are."""
    if name not in CARDS:
        raise UsageError(f"no protocol card {name!r}; expected {', '.join(CARDS)}; correct --protocol")
    return CARDS[name]
