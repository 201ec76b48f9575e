"""Scores by group of people, each against the mean of all: no group should be much worse unsaid."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset
from diffbfr.text import format_columns

WORSE_BY: Final = 0.15
"""A group that is worse than the mean by more than this share is to be named in a model card."""
UNKNOWN: Final = "not labelled"


@dataclass(frozen=True)
class GroupScore:
    """The result on the faces of one group, and whether it is worse than the mean of all by `WORSE_BY`."""

    name: str
    faces: int
    lpips: float
    identity: float
    is_worse: bool


def read_groups(file: Path, dataset: ShardedDataset, keys: Sequence[str]) -> list[str]:
    """The group of each face by the name of its photo, from a table with the columns `file` and `group`."""
    try:
        with file.open(newline="") as rows:
            found = {row["file"]: row["group"] for row in csv.DictReader(rows)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} cannot be read as a table of groups ({error!r}); expected CSV with the columns file and "
            "group"
        ) from error
    photos = {sample.key: Path(sample.source).name for sample in dataset.samples}
    return [found.get(photos[key], UNKNOWN) for key in keys]


def group_scores(rows: Mapping[str, Sequence[float]], groups: Sequence[str]) -> list[GroupScore]:
    """The scores of each group, the worst LPIPS first."""
    lpips, identity = np.asarray(rows["lpips"]), np.asarray(rows["identity"])
    scores = []
    for name in sorted(set(groups)):
        own = np.asarray([group == name for group in groups])
        found, kept = float(lpips[own].mean()), float(identity[own].mean())
        is_worse = found > (1 + WORSE_BY) * lpips.mean() or kept < (1 - WORSE_BY) * identity.mean()
        scores.append(GroupScore(name, int(own.sum()), found, kept, bool(is_worse)))
    return sorted(scores, key=lambda score: -score.lpips)


def format_groups(scores: Sequence[GroupScore]) -> str:
    """The table of groups; `!` marks one that a model card has to name."""
    rows = [["group", "faces", "LPIPS ↓", "identity ↑", ""]]
    for it in scores:
        rows.append(
            [it.name, str(it.faces), f"{it.lpips:.4f}", f"{it.identity:.4f}", "!" if it.is_worse else ""]
        )
    return format_columns(rows)
