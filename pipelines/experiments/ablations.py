"""Study: the effect of each training option on one small stage, scored in the whole cascade.

    DIFFBFR_SQUEEZENET=weights.npz python -m pipelines.experiments.ablations ROOT OUT irm2 --samples 6000 \\
        [--faces 96] [--recipe tiny] [ARM ...]

ROOT holds a dataset with its finished cascade (`diffbfr run`). Every arm trains the stage from scratch, from
the same seed and on the same positions of that dataset, with the recipe's settings at that number of samples
and one option changed; the other two stages are the cascade's. The arms:

    base              the recipe: t restricted to where the sampler goes
    seed              the same with another seed, which shows the effect of chance
    t-all             t uniform over 1..T, as in the paper
    min-snr           Min-SNR weights, gamma 5
    patches           crops of half the side in half of the steps, equal samples
    patches-compute   the same, with as many samples more as they are cheaper
    whole             no crops where the recipe has some, equal samples
    whole-compute     the same, with as many samples fewer as they are dearer
    sampled           IRM-2 sees IRM-1's output alone, as in the paper
    both              IRM-2 sees the input at full size beside it
    ema-LENGTH        base with averaged weights of another length (`diffbfr.ema.PowerEma`)

Prints a table against base: means of the whole cascade's output over faces of the validation split, and
paired differences (of the distances: the ratio of the means) with 95 % bootstrap intervals; LPIPS and FID
where `diffbfr setup metrics` has their weights. The intervals
cover the choice of faces, not the randomness of training; `seed` shows that. Each finished arm is kept under
OUT and a stopped one resumes from its checkpoint with the same command.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from diffbfr.checkpoint import read_stage_spec, save_stage
from diffbfr.errors import UsageError
from diffbfr.metrics.intervals import bootstrap, bootstrap_ratio
from diffbfr.stages import StageName, StageSpec
from diffbfr.training.config import TrainingConfig
from diffbfr.training.loop import AVERAGES, Run, train
from diffbfr.training.post_hoc import reconstruct
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.quality_curve import evaluate_with, perceptual_with
from pipelines.recipes.overrides import load

LPIPS: Final = "LPIPS (Alex)"
BASE: Final = "base"
EMA: Final = "ema-"
CONDITIONS: Final = MappingProxyType({"sampled": 6, "both": 9})
"""What IRM-2 sees beside y_t, and its input channels with that."""
ARMS: Final = (
    BASE,
    "seed",
    "t-all",
    "min-snr",
    "patches",
    "patches-compute",
    "whole",
    "whole-compute",
    "sampled",
    "both",
    "ema-0.05",
    "ema-0.1",
    "ema-0.15",
    "ema-0.2",
)


@dataclass(frozen=True)
class Bench:
    """The settings that all arms share."""

    stage: StageSpec
    training: TrainingConfig
    data: str
    column: str | None
    cascade: Path
    out: Path
    keys: tuple[str, ...]

    @property
    def patched(self) -> TrainingConfig:
        """The training with crops of half the side."""
        return replace(self.training, patch_px=self.stage.px // 2)

    @property
    def whole(self) -> TrainingConfig:
        """The training without crops."""
        return replace(self.training, patch_px=None)

    def same_compute(self, training: TrainingConfig) -> TrainingConfig:
        """Another training over as many samples as take the time of this bench's."""
        share = self.training.area_share(self.stage.px) / training.area_share(self.stage.px)
        return replace(training, **_scaled(round(self.training.num_samples * share)))


def arms_of(bench: Bench) -> list[str]:
    """The arms that change something of this stage's training."""
    left_out = {bench.training.condition} if bench.stage.name == "irm2" else set(CONDITIONS)
    cropped = bench.stage.name == "irm1" or bench.training.patch_px is not None
    left_out |= {"patches", "patches-compute"} if cropped else set()
    left_out |= set() if bench.training.patch_px is not None else {"whole", "whole-compute"}
    return [arm for arm in ARMS if arm not in left_out]


def stage_of(bench: Bench, arm: str) -> StageSpec:
    """The stage of an arm: its network has nine input channels where it sees its input, else six."""
    channels = CONDITIONS.get(arm, bench.stage.unet.in_channels)
    return replace(bench.stage, unet=replace(bench.stage.unet, in_channels=channels))


def training_of(bench: Bench, arm: str) -> TrainingConfig:
    """The training configuration of an arm; UsageError if there is no arm of that name."""
    base = bench.training
    every = max(base.global_batch, base.num_samples // 16)
    arms = {
        BASE: replace(base, ema_lengths=(0.05, 0.1), average_samples=every),
        "seed": replace(base, seed=base.seed + 1),
        "t-all": replace(base, t_max=None),
        "min-snr": replace(base, min_snr_gamma=5.0),
        "patches": bench.patched,
        "patches-compute": bench.same_compute(bench.patched),
        "whole": bench.whole,
        "whole-compute": bench.same_compute(bench.whole),
    }
    if bench.stage.name == "irm2":
        arms |= {name: replace(base, condition=name) for name in CONDITIONS}  # type: ignore[arg-type]
    if arm not in arms:
        raise UsageError(
            f"found the arm {arm!r}; expected one of {', '.join(ARMS)}, or ema- and another length"
        )
    return arms[arm]


def _scaled(num_samples: int) -> dict[str, Any]:
    """The sample counts of a training, in the proportions of the small recipes."""
    return {
        "num_samples": num_samples,
        "warmup_samples": min(2_000, num_samples // 8),
        "decay_samples": num_samples // 2,
        "ema_half_life": min(4_000.0, num_samples / 8),
        "checkpoint_samples": 1_000,
    }


def run_arm(bench: Bench, arm: str) -> dict[str, Any]:
    """Train and score an arm, or read its stored result."""
    folder = bench.out / arm
    kept = folder / "result.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    if arm.startswith(EMA):
        training = replace(training_of(bench, BASE), num_samples=bench.training.num_samples)
        run_arm(bench, BASE)
        weights, chosen = reconstruct(
            bench.out / BASE / AVERAGES, bench.stage.name, float(arm.removeprefix(EMA))
        )
        save_stage(folder, bench.stage, weights)
        metadata: dict[str, Any] = {"profile_error": chosen.error}
    else:
        training, started = training_of(bench, arm), time.process_time()
        stage = stage_of(bench, arm)
        result = train(Run(stage, training, open_dataset(bench.data), folder, column=bench.column))
        metadata = {
            "loss": result.loss,
            "resumed_from": result.resumed_from,
            "processor_s": time.process_time() - started,
        }
    report = evaluate_with(bench.cascade, bench.stage.name, folder, bench.data, bench.keys)
    rows = {row.key: row.values for row in report.rows if row.subject == "tem"}
    metrics = [metric.name for metric in report.metrics]
    perceptual = perceptual_with(
        bench.cascade, bench.stage.name, folder, bench.data, bench.keys, ("tem",)
    ).get("tem")
    if perceptual is not None and perceptual.lpips is not None:
        metrics.append(LPIPS)
        rows = {key: (*values, perceptual.lpips[key]) for key, values in rows.items()}
    share = training.area_share(bench.stage.px)
    metadata |= {
        "fid": None if perceptual is None else perceptual.fid,
        "samples": training.num_samples,
        "compute": share * training.num_samples,
        "metrics": metrics,
        "scores": rows,
    }
    kept.write_text(json.dumps(metadata, indent=1) + "\n")
    means = np.mean(list(rows.values()), axis=0).round(4).tolist()
    sys.stderr.write(f"{arm}: {dict(zip(metrics, means, strict=True))}\n")
    return metadata


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a text table: a row for each arm, with paired differences from base."""
    base = results[BASE]
    keys, metrics = sorted(base["scores"]), base["metrics"]
    head = f"{f'arm ({len(keys)} faces)':<20}{'samples':>9}{'compute':>9}"
    with_fid = base.get("fid") is not None
    lines = [head + "".join(f"{name:>42}" for name in metrics) + (f"{'FID':>9}" if with_fid else "")]
    for arm, result in results.items():
        line = f"{arm:<20}{result['samples']:>9,}{result['compute'] / base['compute']:>9.2f}"
        for i, name in enumerate(metrics):
            ours = [result["scores"][key][i] for key in keys]
            theirs = [base["scores"][key][i] for key in keys]
            line += f"{_cell(name, ours, theirs):>42}"
        if with_fid:
            line += f"{result['fid']:>9.2f}"
        lines.append(line)
    return "\n".join(lines)


def _cell(metric: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """A mean and the paired difference with its interval; for a distance the ratio of means in percent."""
    if metric in ("squeezenet distance", LPIPS):
        percent = bootstrap_ratio(ours, theirs).percent
        return f"{np.mean(ours):.4f} ({percent.mean:+.1f} [{percent.low:+.1f}, {percent.high:+.1f}] %)"
    gain = bootstrap([a - b for a, b in zip(ours, theirs, strict=True)])
    digits = 2 if metric == "PSNR" else 4
    return (
        f"{np.mean(ours):.{digits}f} ({gain.mean:+.{digits}f} [{gain.low:+.{digits}f}, "
        f"{gain.high:+.{digits}f}])"
    )


def open_bench(root: str, out: Path, stage: StageName, samples: int, faces: int, recipe: str) -> Bench:
    """Find the dataset, the column and the cascade of a root; UsageError if one is missing."""
    store = ArtifactStore(root)
    data, cascade, column = (store.latest(step) for step in ("shard", "cascade", "condition-irm1"))
    if data is None or cascade is None or column is None:
        raise UsageError(
            f"found no finished dataset, column and cascade under {root}; expected those of `diffbfr run`; "
            "run it"
        )
    whole, place = Path(store.artifact_dir(cascade.identity)), store.artifact_dir(data.identity)
    training = replace(load(recipe).stage(stage).training, **_scaled(samples))
    name = str(column.metadata["column"]) if stage == "irm2" else None
    keys = tuple(open_dataset(place).keys("val"))[:faces]
    return Bench(read_stage_spec(whole, stage), training, place, name, whole, out, keys)


def main(bench: Bench, arms: Sequence[str]) -> str:
    """Run the arms, base first; write the table to OUT after each arm and to standard output at the end."""
    bench.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    text = ""
    for arm in dict.fromkeys((BASE, *arms)):
        results[arm] = run_arm(bench, arm)
        text = format_table(results)
        (bench.out / "table.txt").write_text(f"{text}\n")
    sys.stdout.write(f"{text}\n")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("out", type=Path)
    parser.add_argument("stage", choices=("irm1", "irm2", "tem"))
    parser.add_argument("arms", nargs="*", metavar="ARM")
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--faces", type=int, default=96)
    parser.add_argument("--recipe", default="tiny")
    given = parser.parse_intermixed_args()
    opened = open_bench(given.root, given.out, given.stage, given.samples, given.faces, given.recipe)
    main(opened, given.arms or arms_of(opened))
