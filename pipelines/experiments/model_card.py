"""The model card of a packaged cascade, filled from its record, the manifest of its dataset and its scores.

What the manifest cannot know is in a file of terms (TOML): a title, sentences about use and limits, and for
each source of photos a pattern of their names with the source, its licence, its terms and its people.
"""

import fnmatch
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset
from diffbfr.spec import from_dict
from diffbfr.stages import STAGE_NAMES, StageName, StageSpec
from pipelines.experiments.group_scores import WORSE_BY, GroupScore
from pipelines.experiments.stage_scores import StageScores

_STAGES: Final = {"lq": "input", "irm1": "IRM-1", "irm2": "IRM-2", "tem": "TEM, the result"}


@dataclass(frozen=True)
class Source:
    """Photos whose names fit a pattern: what they are, their licence and terms, and who is on them."""

    pattern: str
    name: str
    licence: str
    terms: str
    people: str


@dataclass(frozen=True)
class Terms:
    """What a card says that no record knows."""

    title: str
    summary: str
    use: tuple[str, ...]
    limits: tuple[str, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class SourceCount:
    """The photos and the faces of one source in a dataset."""

    source: Source
    photos: int
    faces: int


def read_terms(file: Path) -> Terms:
    """Read a file of terms; UsageError if it cannot be read as one."""
    try:
        return from_dict(Terms, tomllib.loads(file.read_text()), str(file))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} holds no terms ({error}); expected TOML with a title and sources; correct it"
        ) from error


def count_sources(dataset: ShardedDataset, terms: Terms) -> list[SourceCount]:
    """The photos and faces of each source; UsageError for a photo that no pattern names."""
    faces: Counter[Source] = Counter()
    photos: dict[Source, set[str]] = {}
    for sample in dataset.samples:
        name = PurePosixPath(sample.source).name
        source = next((it for it in terms.sources if fnmatch.fnmatchcase(name, it.pattern)), None)
        if source is None:
            raise UsageError(
                f"photo {sample.source} fits no pattern of the terms; expected its source and its licence; "
                "add them"
            )
        faces[source] += 1
        photos.setdefault(source, set()).add(sample.source)
    return [SourceCount(source, len(photos[source]), count) for source, count in faces.items()]


def model_card(
    terms: Terms,
    record: Mapping[str, Any],
    specs: Mapping[StageName, StageSpec],
    sources: Sequence[SourceCount],
    name: str,
    scores: StageScores,
    num_bytes: int,
    others: Mapping[str, str],
) -> str:
    """The card as Markdown; `others` are further measurements, title -> table as text."""
    parts = [f"# {terms.title}", terms.summary, _facts(record, specs, name, num_bytes)]
    parts += ["## Data", *_data(record, sources)]
    parts += ["## Use", _list(terms.use)]
    groups = scores.groups.get(name, ())
    parts += ["## What it is bad at", _list([*terms.limits, *_worse(groups)])]
    parts += ["## Figures", _figures(name, scores)]
    parts += [f"{title}:\n\n```\n{text.strip()}\n```" for title, text in others.items()]
    if groups:
        parts += ["## By group", _by_group(groups)]
    parts += ["## Made by", f"```sh\n{record['command']}\n```", f"Commit `{record['commit']}`."]
    parts += [str(record["note"])] if record.get("note") else []
    return "\n\n".join(parts) + "\n"


def _facts(record: Mapping[str, Any], specs: Mapping[StageName, StageSpec], name: str, num_bytes: int) -> str:
    evaluations = " + ".join(str(specs[stage].fast.num_evaluations) for stage in STAGE_NAMES)
    samples = ", ".join(f"{record['samples'].get(stage, 0):,} ({stage})" for stage in STAGE_NAMES)
    rows = [
        ("name", f"`--model {name}`"),
        (
            "size",
            f"{specs['irm1'].px} -> {specs['tem'].px} px, {num_bytes / 1e6:.1f} MB of {record['weights']}",
        ),
        ("evaluations", evaluations),
        ("trained on", f"{samples} samples, recipe `{record['recipe']}`"),
        ("dataset", f"`{record['content_id']}`"),
    ]
    return _table(("", ""), rows)


def _data(record: Mapping[str, Any], sources: Sequence[SourceCount]) -> list[str]:
    rows = [
        (it.source.name, f"{it.photos:,}", f"{it.faces:,}", it.source.licence, it.source.people)
        for it in sources
    ]
    lines = [_table(("source", "photos", "faces", "licence", "people"), rows)]
    lines += [_list([f"{it.source.name}: {it.source.terms}" for it in sources])]
    licences: Sequence[str] = record.get("licences", ())
    return [*lines, *(f"Weights of others in it: {licence}." for licence in licences)]


def _worse(groups: Sequence[GroupScore]) -> list[str]:
    """A sentence on the groups that are much worse than the mean, or that there is none."""
    if not groups:
        return []
    worse = [f"{it.name} ({it.faces} faces)" for it in groups if it.is_worse]
    if not worse:
        return [f"No group of people measures more than {WORSE_BY:.0%} worse than the mean (below)."]
    return [f"It is more than {WORSE_BY:.0%} worse than the mean on: {', '.join(worse)}."]


def _figures(name: str, scores: StageScores) -> str:
    start, found = next(iter(scores.scored[name].items()))
    rows = []
    for stage, metrics in found.rows.items():
        means = {metric: float(np.mean(values)) for metric, values in metrics.items()}
        rows.append(
            (_STAGES[stage], f"{means['lpips']:.3f}", f"{means['psnr']:.2f} dB", f"{means['identity']:.3f}")
        )
    table = _table(("after", "LPIPS (Alex)", "PSNR", "identity cosine"), rows)
    return (
        f"{scores.faces} held-out faces of its own data (split `{scores.split}`), degraded by Eq. 13, "
        f"fidelity {start}, {found.seconds:.2f} s a face on one core:\n\n{table}"
    )


def _by_group(groups: Sequence[GroupScore]) -> str:
    rows = [
        (it.name, str(it.faces), f"{it.lpips:.3f}", f"{it.identity:.3f}", "worse" if it.is_worse else "")
        for it in groups
    ]
    return _table(("group", "faces", "LPIPS (Alex)", "identity cosine", ""), rows)


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
