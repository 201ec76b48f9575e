"""Copy a root's trained cascade into the package: half-precision weights, specifications, origin, model card.

    diffbfr run --recipe tiny --root build/tiny
    python -m pipelines.experiments.package_cascade build/tiny [--note TEXT]

    python -m pipelines.experiments.package_cascade ROOT --name faces --terms docs/cards/faces.toml
        [--groups fairface.csv] [--table 'TITLE=FILE' ...] [--scores OUT] [--max-faces N]

`diffbfr/weights/tiny` was made in the first way. With --terms the half-precision weights are measured on the
held-out faces of their own dataset (`stage_scores`; OUT keeps the results, so the same command goes on), and
the card gets the figures, the counts of photos by source and licence, and the groups. --table adds a
measurement of other data as text. `faces` needs a card: it is the default of `diffbfr restore` once it is
there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from diffbfr.cascade import cascade_digest, write_record
from diffbfr.checkpoint import load_stage, read_stage_spec, save_stage
from diffbfr.errors import UsageError
from diffbfr.origin import read_origin
from diffbfr.packaged import CARD, FACES, packaged_folder
from diffbfr.stages import PACKAGED, STAGE_NAMES
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore, Record
from pipelines.experiments.command import run_command

MAX_BYTES: Final[Mapping[str, int]] = {PACKAGED: 6_000_000, FACES: 12_000_000}
"""What the weights of a packaged cascade may have in float16."""


@dataclass(frozen=True)
class CardRequest:
    """What a card is made from beside the record: `terms`, groups of people, further tables by title."""

    terms: Path
    scores: Path
    groups: Path | None = None
    tables: Mapping[str, Path] = field(default_factory=dict)
    max_faces: int | None = None


def package(
    root: str,
    name: str = PACKAGED,
    note: str = "",
    card: CardRequest | None = None,
    target: Path | None = None,
) -> Path:
    """Copy the newest cascade of a root to `target`, the packaged folder of that name by default.

    UsageError if there is no cascade, or it is larger than `MAX_BYTES`: then nothing is replaced.
    """
    if name == FACES and card is None:
        raise UsageError(
            f"{FACES} has no card; expected the terms of its data; add --terms docs/cards/faces.toml"
        )
    store = ArtifactStore(root)
    record = store.latest("cascade")
    if record is None:
        raise UsageError(
            f"{root} holds no cascade; expected a finished run; run `diffbfr run --recipe tiny --root "
            f"{root}` first"
        )
    target = packaged_folder(name) if target is None else target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        draft = Path(temporary) / target.name
        draft.mkdir()
        total = _write_weights(store, record, name, draft)
        facts = _facts(store, record, name, note)
        write_record(draft, facts)
        if card is not None:
            (draft / CARD).write_text(_card(store, facts, name, card, draft, total))
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    summary = {"folder": str(target), "bytes": total, "digest": cascade_digest(target)}
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return target


def _write_weights(store: ArtifactStore, record: Record, name: str, draft: Path) -> int:
    """Write the stages in half precision; their bytes."""
    source = Path(store.artifact_dir(record.identity))
    for stage in STAGE_NAMES:
        weights = load_stage(source, stage).net.state_dict()
        origin = read_origin(source / f"{stage}.safetensors")
        save_stage(draft, read_stage_spec(source, stage), weights, torch.float16, origin)
    total = sum(path.stat().st_size for path in draft.glob("*.safetensors"))
    if total > MAX_BYTES[name]:
        raise UsageError(
            f"the weights have {total:,} bytes; expected at most {MAX_BYTES[name]:,}; make the stages smaller"
        )
    return total


def _facts(store: ArtifactStore, record: Record, name: str, note: str) -> dict[str, Any]:
    """The record of the package: that of the cascade, the samples of its stages, and how it was made."""
    stages = record.metadata["stages"]
    trained = {stage: store.by_id(stages[stage].get("artifact", "")) for stage in STAGE_NAMES}
    samples = {stage: found.metadata["samples"] for stage, found in trained.items() if found is not None}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    command = (
        f"diffbfr run --recipe {record.metadata['recipe']} && python -m "
        f"pipelines.experiments.package_cascade ROOT --name {name}"
    )
    origin = {"samples": samples, "command": command, "commit": commit.stdout.strip(), "weights": "float16"}
    return {**record.metadata, **origin} | ({"note": note} if note else {})


def _card(
    store: ArtifactStore, facts: Mapping[str, Any], name: str, card: CardRequest, draft: Path, total: int
) -> str:
    """Measure the half-precision weights on the held-out faces of their dataset, and fill the card."""
    from pipelines.experiments.model_card import count_sources, model_card, read_terms
    from pipelines.experiments.stage_scores import run

    terms, dataset = read_terms(card.terms), store.by_id(facts["dataset"])
    if dataset is None:
        raise UsageError(f"{store.root} holds no dataset {facts['dataset']}; expected that of the training")
    sources = count_sources(open_dataset(store.artifact_dir(dataset.identity)), terms)
    scores = run(
        {name: draft},
        store.root,
        "test",
        ("0.5",),
        (0,),
        card.scores,
        card.max_faces,
        card.groups,
        facts["dataset"],
    )
    specs = {stage: read_stage_spec(draft, stage) for stage in STAGE_NAMES}
    others = {title: file.read_text() for title, file in card.tables.items()}
    return model_card(terms, facts, specs, sources, name, scores, total, others)


def _tables(given: Sequence[str]) -> dict[str, Path]:
    tables = {}
    for word in given:
        title, equals, file = word.partition("=")
        if not equals or not Path(file).is_file():
            raise UsageError(f"--table {word} names no file; expected 'TITLE=FILE' with a table as text")
        tables[title] = Path(file)
    return tables


def main(words: Sequence[str] | None = None) -> None:
    """Run the command of this module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("--name", default=PACKAGED, choices=tuple(MAX_BYTES))
    parser.add_argument("--note", default="")
    parser.add_argument("--terms", type=Path)
    parser.add_argument("--groups", type=Path)
    parser.add_argument("--table", action="append", default=[], metavar="TITLE=FILE")
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--max-faces", type=int)
    given = parser.parse_args(words)
    card = None
    if given.terms is not None:
        scores = given.scores or Path(given.root) / "scores" / given.name
        card = CardRequest(given.terms, scores, given.groups, _tables(given.table), given.max_faces)
    package(given.root, given.name, given.note, card)


if __name__ == "__main__":
    run_command(main)
