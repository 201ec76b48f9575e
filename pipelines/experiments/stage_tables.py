"""The tables of `stage_scores`: by stage and start, against the first model, by the detail of the input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from diffbfr.metrics.intervals import bootstrap, bootstrap_ratio

_TITLES: Final = {"lq": "input", "irm1": "IRM-1", "irm2": "IRM-2", "tem": "TEM"}


@dataclass(frozen=True)
class Scored:
    """A cascade at a start: stage -> metric -> a value a face (a mean over seeds), and what it took.

    `evaluations` are those of the stages, `seconds` those of a face from IRM-1 to TEM.
    """

    evaluations: tuple[int, ...]
    seconds: float
    rows: Mapping[str, Mapping[str, list[float]]]


def stage_table(scored: Mapping[str, Mapping[str, Scored]]) -> list[list[str]]:
    """A row for each model, start and stage; the input and IRM-1 once a model."""
    table = [["model", "start", "after", "LPIPS ↓", "PSNR ↑", "identity ↑", "evaluations", "s/face"]]
    for model, starts in scored.items():
        for start, found in starts.items():
            for stage, metrics in found.rows.items():
                if stage in ("lq", "irm1") and start != next(iter(starts)):
                    continue
                means = {metric: float(np.mean(values)) for metric, values in metrics.items()}
                cells = [f"{means['lpips']:.4f}", f"{means['psnr']:.2f}", f"{means['identity']:.4f}"]
                whole = ["+".join(map(str, found.evaluations)), f"{found.seconds:.2f}"]
                end = whole if stage == "tem" else ["", ""]
                table.append([model, "" if stage == "lq" else start, _TITLES[stage], *cells, *end])
    return table


def comparison_table(scored: Mapping[str, Mapping[str, Scored]]) -> list[list[str]]:
    """The result of each model against the first's at the same start, with 95 % intervals over faces."""
    (first, base), *others = scored.items()
    table = [["model", "start", "LPIPS, % of " + first, "PSNR, dB", "identity", "times as fast"]]
    for model, starts in others:
        for start, found in starts.items():
            own, old = found.rows["tem"], base[start].rows["tem"]
            lpips = bootstrap_ratio(own["lpips"], old["lpips"]).percent
            cells = [f"{lpips.mean:+.1f} [{lpips.low:+.1f}, {lpips.high:+.1f}]"]
            for metric in ("psnr", "identity"):
                change = bootstrap([a - b for a, b in zip(own[metric], old[metric], strict=True)])
                cells.append(f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]")
            table.append([model, start, *cells, f"{base[start].seconds / found.seconds:.1f}"])
    return table


def detail_table(scored: Mapping[str, Scored], details: Sequence[float]) -> list[list[str]]:
    """LPIPS and identity of one model's result by start, for thirds of the faces by their detail."""
    order = np.argsort(details, kind="stable")
    table = [["input's detail", "start", "faces", "LPIPS ↓", "identity ↑"]]
    for third in np.array_split(order, 3):
        kept = [details[i] for i in third]
        for start, found in scored.items():
            columns = (np.asarray(found.rows["tem"][metric])[third] for metric in ("lpips", "identity"))
            cells = [f"{column.mean():.4f}" for column in columns]
            table.append([f"{min(kept):.2f} to {max(kept):.2f}", start, str(len(third)), *cells])
    return table
