"""Study: how often each stage keeps a mole, freckles, glasses or gray, by their rate in the training data.

    python -m pipelines.experiments.long_tail_faces ROOT [--rates 0,0.02,0.1,0.3] [--samples 20000] \\
        [--count 2000] [--px 128] [--pairs 48] [--seed 0] [--workers 2]
    python -m pipelines.experiments.long_tail_faces ROOT --model packaged [--pairs 48]

Procedural faces know their attributes. At each rate a cascade is trained from scratch on `--count` faces that
have each attribute with that probability, all else being equal. It then restores pairs of other faces that
differ in one attribute only, degraded alike by Eq. 13. An output shows the attribute if it is nearer to the
face with it than to the face without it, in the pixels where these differ. `kept`: the share of faces with it
whose output shows it. `invented`: that of faces without it. Brackets are 95 % intervals over faces.

With --model an existing cascade is measured: `packaged` saw the natural rates of
`diffbfr.synthetic.ATTRIBUTE_RATES`. Trainings under ROOT continue with the same command. Writes
ROOT/long-tail-faces.txt, which it prints, and ROOT/long-tail-faces.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from diffbfr.cost.threads import single_thread
from diffbfr.degradation import DegradationSpec
from diffbfr.errors import UsageError
from diffbfr.stages import PACKAGED
from diffbfr.synthetic import ATTRIBUTE_RATES
from diffbfr.text import format_columns
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.experiments.attributes.faces import PRESENT, visible_pairs, write_training_faces
from pipelines.experiments.attributes.kept import SUBJECTS, AttributeRates, Rate, measure_attribute
from pipelines.experiments.command import run_command
from pipelines.experiments.paper.trainings import Plan, recipe_of, train_cascade_of_seed

if TYPE_CHECKING:
    from diffbfr.cascade import Cascade

TRAINING_SEED: Final = 2_000_000
PAIR_SEED: Final = 3_000_000
"""Seeds of the first training face and of the first pair: no face is both."""
TITLES: Final = {"lq": "LQ", "irm1": "IRM-1", "irm2": "IRM-2", "tem": "TEM"}
NATURAL: Final = {"mole": "moles", "freckles": "freckles", "glasses": "glasses", "gray": "gray"}
"""Attribute -> its name in `ATTRIBUTE_RATES`."""


@dataclass(frozen=True)
class MeasureTask:
    """One attribute of one cascade, on pairs of faces of `px`."""

    model: str
    attribute: str
    num_pairs: int
    px: int


def measure(task: MeasureTask) -> list[AttributeRates]:
    """Restore and judge the pairs of an attribute; runs on a worker."""
    from diffbfr.cascade import Cascade

    cascade = Cascade.load(Path(task.model))
    return measure_with(cascade, task)


def measure_with(cascade: "Cascade", task: MeasureTask) -> list[AttributeRates]:
    """Restore and judge the pairs of an attribute with a loaded cascade."""
    pairs = list(visible_pairs(task.attribute, task.px, task.num_pairs, PAIR_SEED))
    with single_thread():
        return measure_attribute(cascade, pairs, DegradationSpec().at(task.px))


def trained_cascades(
    root: str, rates: Sequence[float], count: int, px: int, samples: int, seed: int, workers: int
) -> dict[str, Path]:
    """Train or find a cascade for each rate; the folders by the title of the rate."""
    cascades = {}
    for rate in rates:
        faces = Path(root, "faces", f"{px}-{count}-{rate:g}")
        write_training_faces(faces, count, TRAINING_SEED, px, rate)
        recipe = recipe_of(px, str(faces.absolute()))
        recipe = replace(recipe, cluster=replace(recipe.cluster, num_workers=workers))
        cascades[f"{rate:.1%}"] = train_cascade_of_seed(Plan(recipe, root, samples, (seed,)), seed)
    return cascades


def run(cascades: Mapping[str, Path], px: int, num_pairs: int, workers: int, root: Path) -> str:
    """Measure the cascades, by their titles; write the table and the figures, and return the table."""
    if num_pairs < 1:
        raise UsageError(f"found {num_pairs} pairs; expected at least 1; give more with --pairs")
    tasks = [
        MeasureTask(str(folder), attribute, num_pairs, px)
        for folder, attribute in product(cascades.values(), PRESENT)
    ]
    with Cluster(ClusterConfig(num_workers=workers)) as cluster:
        reports = cluster.map(
            measure, tasks, label="attributes", unit="faces", weight=lambda task: 2 * task.num_pairs
        )
    titles = [title for title, _ in product(cascades, PRESENT)]
    text = format_table(titles, reports)
    root.mkdir(parents=True, exist_ok=True)
    (root / "long-tail-faces.txt").write_text(f"{text}\n")
    rows = []
    for title, report in zip(titles, reports, strict=True):
        rows.append({"trained": title, "rates": list(map(asdict, report))})
    (root / "long-tail-faces.json").write_text(json.dumps(rows, indent=1) + "\n")
    return text


def format_table(titles: Sequence[str], reports: Sequence[Sequence[AttributeRates]]) -> str:
    """A row for each attribute and training; kept and invented for the input and each stage."""
    head = ["attribute", "rate in training"]
    for subject in SUBJECTS:
        head += [f"{TITLES[subject]} kept", "invented"]
    rows = [head]
    for title, report in sorted(zip(titles, reports, strict=True), key=lambda row: _order(row[1])):
        attribute = report[0].attribute
        natural = f"{ATTRIBUTE_RATES[NATURAL[attribute]]:.0%} (natural)"
        row = [attribute, natural if title == PACKAGED else title]
        for line in report:
            row += [_percent(line.kept), _percent(line.invented)]
        rows.append(row)
    count = reports[0][0].kept.count
    return f"{format_columns(rows)}\n\n{count} pairs of faces an attribute; brackets are 95 % intervals"


def _order(report: Sequence[AttributeRates]) -> int:
    return list(PRESENT).index(report[0].attribute)


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.share:.0%} [{low:.0%}, {high:.0%}]"


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise UsageError(f"found the rates {text!r}; expected fractions with commas, such as 0,0.02,0.1")
    return rates


def main(words: Sequence[str] | None = None) -> None:
    """Run the command of this module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("--model")
    parser.add_argument("--rates", default="0,0.02,0.1,0.3")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(words)
    if given.model is None:
        cascades = trained_cascades(
            given.root, _rates(given.rates), given.count, given.px, given.samples, given.seed, given.workers
        )
        px = given.px
    else:
        cascades, px = _existing(given.model)
    sys.stdout.write(f"{run(cascades, px, given.pairs, given.workers, Path(given.root))}\n")


def _existing(model: str) -> tuple[dict[str, Path], int]:
    from diffbfr.cascade import cascade_digest
    from diffbfr.checkpoint import read_stage_spec
    from diffbfr.packaged import named_folder

    folder = named_folder(model)
    cascade_digest(folder)
    return {model: folder}, read_stage_spec(folder, "tem").px


if __name__ == "__main__":
    run_command(main)
