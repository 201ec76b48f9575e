"""Study: the quality that the few-step solvers lose against Algorithm 1, face by face and stage by stage.

    DIFFBFR_SQUEEZENET=weights.npz python -m pipelines.experiments.fast_faithful ROOT OUT [--faces 96]
    [--split test] [--cascade FOLDER] [ARM ...]

An arm says how each stage is sampled, `IRM1/IRM2/TEM`: `faithful`, `fast` (the stage's own `StageSpec.fast`)
or SOLVER:EVALUATIONS[:END], END being `end_half_log_snr`. Every arm restores the same held-out faces of the
root's dataset with the same noise keys. Outputs are kept under OUT by stage, so that arms whose first stages
agree share them, and the same command resumes where it was stopped.

The table has a row for each output: of a whole arm, and of its first one or two stages. The differences are
against Algorithm 1 up to the same stage, means of paired differences (of the distance: the ratio of the
means) with their 95 % bootstrap intervals over faces.
"""

import argparse
import copy
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, get_args

import numpy as np
import torch
from torch import Tensor

from diffbfr.cascade import Cascade, sample
from diffbfr.errors import UsageError
from diffbfr.images import Pixels, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.metrics.intervals import Interval, bootstrap, bootstrap_ratio
from diffbfr.metrics.psnr import psnr
from diffbfr.metrics.squeezenet import SqueezeNetDistance
from diffbfr.metrics.ssim import ssim
from diffbfr.models.denoiser import Denoiser, upsample
from diffbfr.shards import ShardedDataset
from diffbfr.stages import STAGE_NAMES, Mode
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.dataset.manifest import open_dataset
from pipelines.evaluation.types import TITLES
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.perceptual import METRICS as PERCEPTUAL
from pipelines.experiments.perceptual import has_weights, read_perceptual
from pipelines.experiments.sampler_words import FORM, sampled
from pipelines.experiments.scored_folders import score_folder, write_pictures
from pipelines.steps.evaluate import squeezenet_weights

FAITHFUL: Final = "faithful"
ARMS: Final = ("fast/fast/fast", "fast/faithful/faithful", "faithful/fast/faithful", "faithful/faithful/fast")
"""The few-step solvers in all stages, then in one stage at a time."""

Samplers = tuple[str, ...]
"""How the first one, two or three stages are sampled."""
Scores = dict[str, list[float]]
"""Metric -> one value a face; FID has one for all."""


@dataclass(frozen=True)
class Comparison:
    """The scores of one output, and its differences from Algorithm 1's output of the same stage."""

    samplers: Samplers
    psnr: float
    ssim: float
    d_psnr: Interval
    d_ssim: Interval
    distance: float | None
    ratio: Interval | None
    """Mean distance over that of Algorithm 1; None without SqueezeNet's weights."""
    lpips: float | None
    lpips_ratio: Interval | None
    """The same of LPIPS (Alex); None without its weights."""
    fid: float | None


def with_sampler(stage: Denoiser, sampler: str) -> tuple[Denoiser, Mode]:
    """The stage and the mode with which `sample` uses this sampler; UsageError if it is not a sampler."""
    if sampler in get_args(Mode):
        return stage, sampler  # type: ignore[return-value]
    try:
        spec = sampled(stage.spec, sampler)
    except UsageError:
        raise UsageError(f"found the sampler {sampler!r}; expected faithful, fast or {FORM}") from None
    other = copy.copy(stage)
    other.spec = spec
    return other, "fast"


def parse_arm(arm: str) -> Samplers:
    """The three samplers of an arm."""
    samplers = tuple(arm.split("/"))
    if len(samplers) != len(STAGE_NAMES):
        raise UsageError(
            f"found the arm {arm!r}; expected one sampler a stage, IRM1/IRM2/TEM, such as "
            "fast/faithful/faithful"
        )
    return samplers


class Restorer:
    """Restores faces with given samplers, and keeps every stage's output in `folder` as float32."""

    def __init__(self, cascade: Cascade, dataset: ShardedDataset, folder: Path) -> None:
        self.cascade = cascade
        self.dataset = dataset
        self.folder = folder

    def output(self, key: str, samplers: Samplers) -> Tensor:
        """The output of the last of these stages, (1, 3, px, px) in [-1, 1], computed unless it is kept."""
        path = self.folder / key / f"{','.join(samplers)}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path))
        made = self._sample(key, samplers)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(".part")
        with partial_file.open("wb") as file:
            np.save(file, made.numpy())
        partial_file.replace(path)
        return made

    def _sample(self, key: str, samplers: Samplers) -> Tensor:
        stage, mode = with_sampler(getattr(self.cascade, STAGE_NAMES[len(samplers) - 1]), samplers[-1])
        noise = [noise_key(hashlib.sha256(self.dataset.lq_bytes(key, 0)).hexdigest())]
        run_stage = partial(sample, stage, noise, mode)
        if len(samplers) == 1:
            return run_stage(
                start_image=None,
                condition=to_tensor([lq_to_model(self.dataset.lq(key, 0), stage.spec.px)]),
            )
        before = self.output(key, samplers[:-1])
        if len(samplers) == 3:
            return run_stage(start_image=before, condition=None)
        if stage.spec.sees_input:
            raise UsageError(
                f"{self.cascade.digest[:12]} has an irm2 that sees its input; expected the paper's, of six "
                "channels; name another cascade"
            )
        enlarged = upsample(before, stage.spec.px, stage.spec.resize_kernel, clamp=stage.spec.resize_clamp)
        return run_stage(start_image=enlarged, condition=enlarged)


def score(
    restorer: Restorer,
    keys: Sequence[str],
    samplers: Samplers,
    distance: Callable[[Tensor, Tensor], Tensor] | None,
) -> Scores:
    """The scores of one output for every face, at full size."""
    px, scores = restorer.cascade.hq_px, Scores()
    for key in keys:
        made = to_pixels(restorer.output(key, samplers))[0]
        truth = restorer.dataset.hq(key, 0)
        full_size = resize(made, px, "bicubic") if len(made) != px else made
        for name, value in _measure(full_size, truth, distance).items():
            scores.setdefault(name, []).append(value)
    return scores


def _measure(
    made: Pixels, truth: Pixels, distance: Callable[[Tensor, Tensor], Tensor] | None
) -> dict[str, float]:
    pair = [torch.from_numpy(np.ascontiguousarray(image))[None] for image in (made, truth)]
    values = {"psnr": float(psnr(*pair)), "ssim": float(ssim(*pair))}
    if distance is not None:
        values["distance"] = float(distance(to_tensor([made]), to_tensor([truth])))
    return values


def _perceptual(
    restorer: Restorer, keys: Sequence[str], samplers: Samplers, out: Path, cluster: Cluster
) -> Scores:
    """LPIPS (Alex) for every face of an output, and FID of all; missing without their weights."""
    px, place = restorer.cascade.hq_px, out / "pictures" / f"{restorer.cascade.digest[:12]}-{len(keys)}"
    name = ",".join(samplers).replace(":", "_")
    for key in keys:
        made = to_pixels(restorer.output(key, samplers))[0]
        full_size = resize(made, px, "bicubic") if len(made) != px else made
        write_pictures(place / name, {key: full_size})
        write_pictures(place / "reference", {key: restorer.dataset.hq(key, 0)})
    found = read_perceptual(
        score_folder(place / name, place / "reference", place / "scores" / name, cluster, PERCEPTUAL)
    )
    scores: Scores = {} if found.lpips is None else {"lpips": [found.lpips[key] for key in keys]}
    return scores if found.fid is None else {**scores, "fid": [found.fid]}


def compare(samplers: Samplers, scores: Scores, faithful: Scores) -> Comparison:
    """Compare an output with Algorithm 1's, face by face."""

    def mean(name: str) -> float:
        return float(np.mean(scores[name]))

    def difference(name: str) -> Interval:
        return bootstrap([a - b for a, b in zip(scores[name], faithful[name], strict=True)])

    def ratio(name: str) -> Interval | None:
        return bootstrap_ratio(scores[name], faithful[name]) if name in scores else None

    return Comparison(
        samplers,
        mean("psnr"),
        mean("ssim"),
        difference("psnr"),
        difference("ssim"),
        mean("distance") if "distance" in scores else None,
        ratio("distance"),
        mean("lpips") if "lpips" in scores else None,
        ratio("lpips"),
        scores["fid"][0] if "fid" in scores else None,
    )


def format_table(rows: Sequence[Comparison], faces: int) -> str:
    """The comparisons as a text table, a row for each output."""
    lines = [
        f"{f'output ({faces} faces)':<52}{'PSNR':>8}{'dPSNR (dB)':>26}"
        f"{'SSIM':>8}{'dSSIM':>26}{'dist.':>8}{'distance':>26}{'LPIPS':>8}{'of it':>26}{'FID':>9}"
    ]
    for row in rows:
        name = f"{TITLES[STAGE_NAMES[len(row.samplers) - 1]]} {'/'.join(row.samplers)}"
        line = f"{name:<52}{row.psnr:>8.3f}{_interval(row.d_psnr, '+.3f'):>26}"
        line += f"{row.ssim:>8.4f}{_interval(row.d_ssim, '+.4f'):>26}"
        for value, ratio in ((row.distance, row.ratio), (row.lpips, row.lpips_ratio)):
            line += f"{'':>34}" if value is None or ratio is None else _ratio_columns(value, ratio)
        line += f"{'':>9}" if row.fid is None else f"{row.fid:>9.2f}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _ratio_columns(value: float, ratio: Interval) -> str:
    return f"{value:>8.4f}{_interval(ratio.percent, '+.1f') + ' %':>26}"


def _interval(interval: Interval, form: str) -> str:
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def outputs_of(arms: Sequence[str]) -> list[Samplers]:
    """Every output that the arms need, first stages first, with Algorithm 1's to compare with."""
    whole = [(FAITHFUL,) * 3, *(parse_arm(arm) for arm in arms)]
    outputs: list[Samplers] = []
    for depth in (1, 2, 3):
        outputs += [samplers[:depth] for samplers in whole]
    return list(dict.fromkeys(outputs))


def run(
    root: str, out: Path, arms: Sequence[str], faces: int, split: str, cascade: str | None
) -> list[Comparison]:
    """Restore, measure and compare; print the table to standard output and write it to `out`."""
    store = ArtifactStore(root)
    data, trained = store.latest("shard"), store.latest("cascade")
    if data is None or (cascade is None and trained is None):
        raise UsageError(
            f"found no finished dataset and cascade under {root}; expected those of `diffbfr run`; run it, "
            "or name --cascade"
        )
    outputs = outputs_of(arms)
    model = Cascade.load(Path(cascade) if cascade else Path(store.artifact_dir(trained.identity)))  # type: ignore[union-attr]
    dataset = open_dataset(store.artifact_dir(data.identity))
    keys = dataset.keys(split)[:faces]  # type: ignore[arg-type]
    restorer = Restorer(model, dataset, out / model.digest[:12])
    for i, key in enumerate(keys):
        for samplers in outputs:
            restorer.output(key, samplers)
        sys.stderr.write(f"{i + 1} of {len(keys)} faces\n")
    weights = squeezenet_weights(None)
    distance = SqueezeNetDistance(weights) if weights else None
    scores = {samplers: score(restorer, keys, samplers, distance) for samplers in outputs}
    if has_weights() and len(keys) > 1:
        with Cluster(ClusterConfig(num_workers=0)) as cluster:
            for samplers in outputs:
                scores[samplers] |= _perceptual(restorer, keys, samplers, out, cluster)
    rows = [compare(samplers, scores[samplers], scores[(FAITHFUL,) * len(samplers)]) for samplers in outputs]
    text = format_table(rows, len(keys))
    sys.stdout.write(f"{text}\n")
    (out / "table.txt").write_text(f"{text}\n")
    (out / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("out", type=Path)
    parser.add_argument("arms", nargs="*", metavar="ARM")
    parser.add_argument("--faces", type=int, default=96)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--cascade")
    given = parser.parse_intermixed_args()
    run(given.root, given.out, given.arms or ARMS, given.faces, given.split, given.cascade)
