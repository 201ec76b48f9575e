"""Study: the paper's Figure 2, a DDPM and a GAN of equal size on long-tailed MNIST.

    python -m pipelines.experiments.long_tail_digits MNIST OUT docs/figures/long_tail_digits \\
        [--seeds 0,1,2] [--workers 2] [--ddpm-samples N] [--gan-samples N] [--generated N]

MNIST is the folder of its four idx.gz files. Labels 0 and 1 are kept whole, of the others 1,200 to 120
pictures each. Both models train on that set, with about the same processor time by default, and a small
classifier, trained on the whole of MNIST, counts the labels of what they generate. The row `test digits` is
the same count of real ones that no model saw, drawn by the shares of the training set: what sampling and
the classifier's errors alone make of a perfect model.

Trainings are kept under OUT, and the same command continues them. Writes TARGET.json with every figure and
TARGET.png with the histogram and a grid of each model; all digits in it are generated.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from diffbfr.cost.threads import single_thread
from diffbfr.errors import UsageError
from diffbfr.text import format_columns
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.experiments.command import run_command
from pipelines.experiments.spread import parse_seeds
from pipelines.experiments.toys import ddpm, gan, picture
from pipelines.experiments.toys.classifier import Classifier, train_classifier
from pipelines.experiments.toys.counts import LabelCounts, count_labels
from pipelines.experiments.toys.mnist import Digits, long_tail, read_digits
from pipelines.experiments.toys.training import generator_of

ModelName = Literal["ddpm", "gan"]
MODELS: Final[Mapping[ModelName, ModuleType]] = {"ddpm": ddpm, "gan": gan}
TITLES: Final = {"ddpm": "DDPM", "gan": "GAN", "test": "test digits"}
PAPER: Final = {"ddpm": 1_440_000, "gan": 1_510_000}
"""Parameters of the paper's models (Table 5)."""


@dataclass(frozen=True)
class Budget:
    """Digits that each training sees, and digits that each model generates."""

    ddpm: int = 48_000
    gan: int = 800_000
    classifier: int = 120_000
    generated: int = 1_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UsageError(f"the budget has {name}={value}; expected at least 1 digit; give more")


@dataclass(frozen=True)
class ModelTask:
    """One training of one model; what it made is kept in `folder`."""

    model: ModelName
    seed: int
    mnist: Path
    folder: Path
    num_samples: int
    num_generated: int

    @property
    def file(self) -> Path:
        """The generated digits."""
        return self.folder / f"{self.model}-{self.seed}-{self.num_samples}-{self.num_generated}.npy"


def train_and_generate(task: ModelTask) -> float:
    """Train a model and keep what it generates; the seconds of processor time, 0 if that was done before."""
    if task.file.is_file():
        return 0.0
    started = time.process_time()
    digits = long_tail(read_digits(task.mnist, "train"))
    with single_thread():
        made = MODELS[task.model].train_and_sample(
            digits,
            task.seed,
            task.num_samples,
            task.num_generated,
            task.folder / f"{task.model}-{task.seed}-{task.num_samples}.safetensors",
        )
    partial_file = task.file.with_suffix(".part")
    with partial_file.open("wb") as file:
        np.save(file, made)
    partial_file.replace(task.file)
    return time.process_time() - started


def run(mnist: Path, out: Path, target: Path, seeds: Sequence[int], workers: int, budget: Budget) -> str:
    """Train, generate, count, and write the picture and the figures; the table as text."""
    train, test = read_digits(mnist, "train"), read_digits(mnist, "test")
    kept = long_tail(train)
    out.mkdir(parents=True, exist_ok=True)
    tasks = [
        ModelTask("ddpm", seed, mnist.absolute(), out.absolute(), budget.ddpm, budget.generated)
        for seed in seeds
    ]
    tasks += [
        ModelTask("gan", seed, mnist.absolute(), out.absolute(), budget.gan, budget.generated)
        for seed in seeds
    ]
    with single_thread():
        classifier = train_classifier(
            train, budget.classifier, out / f"classifier-{budget.classifier}.safetensors"
        )
        with Cluster(ClusterConfig(num_workers=workers)) as cluster:
            seconds = cluster.map(train_and_generate, tasks, label="digits", unit="models")
        made = {(task.model, task.seed): np.load(task.file) for task in tasks}
        found = _count_all(classifier, kept, test, made, seeds, budget.generated)
        accuracy = float((classifier.name(test.pixels)[0] == test.labels).mean())
    named = {task.file.stem: round(value, 1) for task, value in zip(tasks, seconds, strict=True)}
    _write(target, kept, found, made, budget, accuracy, _seconds(out, named))
    return format_table(found, kept)


def _count_all(
    classifier: Classifier,
    kept: Digits,
    test: Digits,
    made: Mapping[tuple[ModelName, int], NDArray[np.uint8]],
    seeds: Sequence[int],
    count: int,
) -> dict[str, list[LabelCounts]]:
    """The counts of each model and of real digits, one for each seed."""
    compare: Callable[..., LabelCounts] = partial(count_labels, wanted=kept.shares)
    found: dict[str, list[LabelCounts]] = {}
    for model in MODELS:
        found[model] = [compare(*classifier.name(made[model, seed])) for seed in seeds]
    found["test"] = [compare(*classifier.name(_real_digits(kept, test, seed, count))) for seed in seeds]
    return found


def _real_digits(kept: Digits, test: Digits, seed: int, count: int) -> NDArray[np.uint8]:
    """Digits of the test set, drawn with replacement by the shares of the training set."""
    import torch

    generator = generator_of(seed, "real")
    weights = torch.from_numpy(kept.shares)[torch.from_numpy(test.labels.astype(np.int64))]
    weights /= torch.from_numpy(test.shares)[torch.from_numpy(test.labels.astype(np.int64))]
    rows = torch.multinomial(weights, count, replacement=True, generator=generator)
    drawn: NDArray[np.uint8] = test.pixels[rows.numpy()]
    return drawn


def format_table(found: Mapping[str, Sequence[LabelCounts]], kept: Digits) -> str:
    """A row a model: means over seeds with their lowest and highest."""
    head = (
        "",
        "parameters",
        "total variation ↓",
        "coverage of the tail ↑",
        "tail share",
        "clear ↑",
        "missed",
    )
    rows: list[Sequence[str]] = [head]
    for name, counts in found.items():
        size = f"{MODELS[name].num_parameters():,}" if name in MODELS else ""  # type: ignore[index]
        fields = ("total_variation", "coverage", "tail_share", "clear")
        columns = [_range(list(map(attrgetter(field), counts))) for field in fields]
        rows.append((TITLES[name], size, *columns, _missed(counts)))
    tail = 1 - float(kept.shares[:2].sum())
    foot = (
        f"{len(kept):,} training digits, {tail:.3f} of them with labels 2 to 9; mean over "
        f"{len(found['test'])} seeds [lowest, highest]; missed: labels with less than half of their share"
    )
    return f"{format_columns(rows)}\n\n{foot}"


def _range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def _missed(counts: Sequence[LabelCounts]) -> str:
    """The labels that a seed misses, of each seed."""
    return "; ".join(",".join(map(str, count.missed)) or "none" for count in counts)


def _seconds(out: Path, seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds of this and of earlier calls by training; a training that was done keeps its own."""
    file = out / "seconds.json"
    earlier: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    both = earlier | {name: value for name, value in seconds.items() if value}
    file.write_text(json.dumps(both, indent=1) + "\n")
    return both


def _write(
    target: Path,
    kept: Digits,
    found: Mapping[str, Sequence[LabelCounts]],
    made: Mapping[tuple[ModelName, int], NDArray[np.uint8]],
    budget: Budget,
    accuracy: float,
    seconds: Mapping[str, float],
) -> None:
    shares = {"training digits": kept.shares[None]}
    for model in MODELS:
        shares[TITLES[model]] = np.array([count.shares for count in found[model]])
    first = min(seed for _, seed in made)
    grids = {TITLES[model]: made[model, first] for model in MODELS}
    picture.draw(shares, grids, target.with_suffix(".png"))
    figures: dict[str, Any] = {
        "budget": asdict(budget),
        "parameters": {model: MODELS[model].num_parameters() for model in MODELS},
        "parameters_of_the_paper": PAPER,
        "classifier_accuracy": accuracy,
        "training_shares": kept.shares.tolist(),
        "processor_seconds": dict(seconds),
        "counts": {name: list(map(asdict, counts)) for name, counts in found.items()},
    }
    target.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Budget()
    parser.add_argument("mnist", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--ddpm-samples", default=default.ddpm, type=int)
    parser.add_argument("--gan-samples", default=default.gan, type=int)
    parser.add_argument("--generated", default=default.generated, type=int)
    return parser.parse_args()


def main() -> None:
    """Run the command of this module's first lines."""
    given = _arguments()
    seeds = parse_seeds(given.seeds)
    budget = Budget(ddpm=given.ddpm_samples, gan=given.gan_samples, generated=given.generated)
    text = run(given.mnist, given.out, given.target, seeds, given.workers, budget)
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    run_command(main)
