"""Every metric of the protocol cards: what it is, and what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from diffbfr.metrics.info import MetricInfo

if TYPE_CHECKING:
    from diffbfr.metrics.cards import ProtocolCard

SETUP: Final = "run diffbfr setup metrics"
REMEDIES: Final = {
    "squeezenet": "set DIFFBFR_SQUEEZENET to its weights",
    "mobilefacenet": "set DIFFBFR_IDENTITY to its weights",
    "detector": "run diffbfr setup faces",
}
"""What to do for weights that `diffbfr setup metrics` does not fetch."""


@dataclass(frozen=True)
class MetricFiles:
    """Where the weights are, "" if there are none; paths are the same on every worker.

    `squeezenet` and `mobilefacenet` are the user's files (`DIFFBFR_SQUEEZENET`, `DIFFBFR_IDENTITY`); the
    `detector` is that of `diffbfr setup faces`.
    """

    lpips_alex: str = ""
    lpips_vgg: str = ""
    inception: str = ""
    face_resnet: str = ""
    niqe: str = ""
    squeezenet: str = ""
    mobilefacenet: str = ""
    detector: str = ""


@dataclass(frozen=True)
class MetricEntry:
    """A metric of the table: the file that it needs ("" for none), and the smallest side of its pictures."""

    info: MetricInfo
    file: str = ""
    smallest_px: int = 1
    embedding: str = ""
    needs_lq: bool = False


def metric_table() -> Mapping[str, MetricEntry]:
    """Every metric by the key that cards, columns and `--metrics` use, in the order of tables."""
    from diffbfr.metrics import (
        consistency,
        face_resnet,
        frechet,
        identity,
        kid,
        landmarks,
        lpips,
        niqe,
        psnr,
        squeezenet,
        ssim,
    )

    return {
        "psnr": MetricEntry(psnr.INFO),
        "psnr_y": MetricEntry(psnr.INFO_Y),
        "ssim": MetricEntry(ssim.INFO, smallest_px=ssim.WINDOW_PX),
        "ssim_y": MetricEntry(ssim.INFO_Y, smallest_px=ssim.WINDOW_PX),
        "lpips_alex": MetricEntry(lpips.INFO_ALEX, "lpips_alex", lpips.SMALLEST_PX),
        "lpips_vgg": MetricEntry(lpips.INFO_VGG, "lpips_vgg", lpips.SMALLEST_PX),
        "niqe": MetricEntry(niqe.INFO, "niqe", niqe.SMALLEST_PX),
        "identity_cosine": MetricEntry(face_resnet.INFO_COSINE, "face_resnet"),
        "identity_degree": MetricEntry(face_resnet.INFO_DEGREE, "face_resnet"),
        "mobilefacenet_cosine": MetricEntry(identity.INFO, "mobilefacenet"),
        "landmark_distance": MetricEntry(landmarks.INFO, "detector"),
        "squeezenet_distance": MetricEntry(squeezenet.INFO, "squeezenet", squeezenet.SMALLEST_PX),
        "consistency": MetricEntry(consistency.INFO, needs_lq=True),
        "fid": MetricEntry(frechet.FID, "inception", embedding=frechet.FID_EMBEDDING),
        "kid": MetricEntry(kid.KID, "inception", embedding=frechet.FID_EMBEDDING),
        "frechet_dlib": MetricEntry(frechet.DLIB, "face_resnet", embedding=frechet.DLIB_EMBEDDING),
        "frechet_mobilefacenet": MetricEntry(
            frechet.MOBILEFACENET, "mobilefacenet", embedding=frechet.MOBILEFACENET_EMBEDDING
        ),
    }


def installed_files(
    squeezenet: str | None, mobilefacenet: str | None, detector: str | None = None
) -> MetricFiles:
    """The weights in the cache of this machine, and those that are given."""
    from pipelines.packages import metric_weights
    from pipelines.packages.weights import find_weights

    sets = {
        "lpips_alex": metric_weights.LPIPS_ALEX,
        "lpips_vgg": metric_weights.LPIPS_VGG,
        "inception": metric_weights.INCEPTION,
        "face_resnet": metric_weights.FACE_RESNET,
        "niqe": metric_weights.NIQE,
    }
    found = {field: str(find_weights(item.name) or "") for field, item in sets.items()}
    given = {"squeezenet": squeezenet, "mobilefacenet": mobilefacenet, "detector": detector}
    return MetricFiles(**found, **{name: path or "" for name, path in given.items()})


def unavailable(key: str, entry: MetricEntry, files: MetricFiles, has_lq: bool, side_px: int) -> str:
    """Why a metric cannot be measured here, "" if it can."""
    if entry.file and not getattr(files, entry.file):
        return REMEDIES.get(entry.file, SETUP)
    if entry.needs_lq and not has_lq:
        return "give the inputs with --lq"
    if side_px < entry.smallest_px:
        return f"pictures of {side_px} px, it needs {entry.smallest_px}"
    return ""


def chosen_metrics(card: "ProtocolCard", names: str | None) -> tuple[str, ...]:
    """The metrics of a card, or those of a list with commas; UsageError for one that the card has not."""
    from diffbfr.errors import UsageError

    if names is None:
        return card.metrics
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in card.metrics:
            raise UsageError(
                f"card {card.name} has no metric {name!r}; expected some of {', '.join(card.metrics)}; "
                "correct --metrics"
            )
    if not wanted:
        raise UsageError("--metrics is empty; expected names with commas, such as psnr,ssim,lpips_alex")
    return tuple(key for key in card.metrics if key in wanted)
