"""Study: the quality of a cascade over the training samples of one of its stages, on held-out faces.

    diffbfr run --recipe tiny --set irm2.training.average_samples=4000 --root build/tiny
    python -m pipelines.experiments.quality_curve build/tiny irm2 docs/figures/quality_curve

The averages that the training kept replace the finished stage in turn; the other two stages are unchanged.
Each of these cascades restores the same faces of the validation split, since the test split is for the final
figures only. LPIPS and FID are measured where `diffbfr setup metrics` has their weights. Writes TARGET.json
and TARGET.svg.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffbfr.cascade import write_record
from diffbfr.checkpoint import read_stage_spec, write_stage_spec
from diffbfr.errors import UsageError
from diffbfr.stages import STAGE_NAMES
from diffbfr.training.loop import AVERAGES
from pipelines.dataset.manifest import open_dataset
from pipelines.evaluation.types import SUBJECTS, TITLES, EvaluateReport, EvaluateTask
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.execution.model_ref import pin_model
from pipelines.experiments.perceptual import METRICS, Perceptual, info, measure_perceptual
from pipelines.steps.evaluate import make_evaluator, squeezenet_weights

NUM_FACES = 64


def measure(root: str, stage: str) -> dict[str, Any]:
    """Scores of the cascade with each kept average of a stage; UsageError if the root has none."""
    store = ArtifactStore(root)
    cascade, dataset, trained = (store.latest(step) for step in ("cascade", "shard", f"train-{stage}"))
    if cascade is None or dataset is None or trained is None:
        raise UsageError(
            f"{root} holds no cascade with {stage}; expected a finished run; run the command in this file's "
            "first lines"
        )
    averages = sorted(Path(store.artifact_dir(trained.identity), AVERAGES).glob("*"))
    if not averages:
        raise UsageError(
            f"{root} kept no averages of {stage}; expected some; train with --set "
            f"{stage}.training.average_samples=4000"
        )
    whole, data = Path(store.artifact_dir(cascade.identity)), store.artifact_dir(dataset.identity)
    keys = tuple(open_dataset(data).keys("val"))[:NUM_FACES]
    points = []
    for average in averages:
        report = evaluate_with(whole, stage, average, data, keys)
        table = means(report)
        for subject, found in perceptual_with(whole, stage, average, data, keys, SUBJECTS).items():
            table[subject] |= found.means
        points.append({"samples": int(average.name), **table})
        sys.stderr.write(f"{points[-1]}\n")
    better = {metric.name: metric.better for metric in report.metrics}
    better |= {info(m).name: info(m).better for m in METRICS if info(m).name in table["tem"]}
    return {
        "stage": stage,
        "faces": len(keys),
        "split": "val",
        "metrics": better,
        "points": points,
    }


def evaluate_with(whole: Path, stage: str, weights: Path, data: str, keys: tuple[str, ...]) -> EvaluateReport:
    """Evaluate a cascade in mode fast, with one stage's weights from another folder."""
    with _assembled(whole, stage, weights) as folder:
        task = EvaluateTask(0, data, pin_model(folder), keys, squeezenet=squeezenet_weights(None))
        return make_evaluator(task)(task)


def perceptual_with(
    whole: Path, stage: str, weights: Path, data: str, keys: tuple[str, ...], subjects: Sequence[str]
) -> dict[str, Perceptual]:
    """LPIPS and FID of the same cascade on the same faces, by subject; empty without their weights."""
    with _assembled(whole, stage, weights) as folder:
        return measure_perceptual(folder, data, keys, subjects)


@contextmanager
def _assembled(whole: Path, stage: str, weights: Path) -> Iterator[Path]:
    """A cascade folder with the given weights in place of one stage's finished ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for other in STAGE_NAMES:
            shutil.copy(whole / f"{other}.json", folder)
            shutil.copy((weights if other == stage else whole) / f"{other}.safetensors", folder)
        if (weights / f"{stage}.json").is_file():  # the network may be another, the sampling is the cascade's
            network = read_stage_spec(weights, stage).unet
            write_stage_spec(folder, replace(read_stage_spec(whole, stage), unet=network))
        write_record(folder, {})
        yield folder


def means(report: EvaluateReport) -> dict[str, dict[str, float]]:
    """Mean over the faces, by subject and metric."""
    table: dict[str, dict[str, float]] = {}
    for subject in SUBJECTS:
        columns = zip(*(row.values for row in report.rows if row.subject == subject), strict=True)
        table[subject] = {
            metric.name: round(sum(values) / len(values), 4)
            for metric, values in zip(report.metrics, columns, strict=True)
        }
    return table


def draw(curve: dict[str, Any], path: Path) -> None:
    """Draw one plot for each metric: the outputs of Algorithm 1 over the samples, the input as a line."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "diffbfr"
    points = curve["points"]
    figure, axes = plt.subplots(
        1, len(curve["metrics"]), figsize=(4 * len(curve["metrics"]), 3), layout="constrained"
    )
    for axis, (metric, better) in zip(axes, curve["metrics"].items(), strict=True):
        for subject in SUBJECTS:
            values = [point[subject][metric] for point in points]
            samples = [point["samples"] for point in points]
            axis.plot(samples, values, label=TITLES[subject], linestyle="--" if subject == "lq" else "-")
        axis.set(title=f"{metric} ({better} is better)", xlabel=f"training samples of {curve['stage']}")
        axis.set_xscale("log")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    target = Path(sys.argv[3])
    found = measure(sys.argv[1], sys.argv[2])
    draw(found, target.with_suffix(".svg"))
    target.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
