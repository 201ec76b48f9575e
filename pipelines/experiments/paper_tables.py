"""Study: the paper's Tables 2, 3 and 4 at small scale, with its figures beside and a verdict for each claim.

    python -m pipelines.experiments.paper_tables 2 ROOT --faces 'train_*.zip' \\
        --hold-out NAME=FACES [--hold-out NAME=FACES] [--px 128] [--samples 20000] [--seeds 0,1,2] \\
        [--precision bfloat16] [--max-faces 96] [--mode fast] [--evaluations 20] [--end 4.0] \\
        [--workers 2]

Table 2: one stage at full size (IRM-s), a cascade (IRM-c), its second stage from a truncated start (IRM-c-t),
and TEM behind it (TEM-w). Table 3: N1, the start of IRM-2. Table 4: N2, the start of TEM. The starts are the
paper's at 512 px; at `--px` the steps are those that hide as much of a face. All tables share the trainings,
restorations and scores under ROOT, and the same command continues what was interrupted.

`--samples` is the training budget: faces that IRM-1, IRM-2 and IRM-s see each; TEM sees half as many. Each
hold-out is degraded by Eq. 13 once and scored by `diffbfr evaluate` under the card ffhq-holdout. A cell is
the mean over seeds [lowest, highest]; a verdict needs the 95 % interval over seeds on one side of zero.
`--end` stops the samplers of IRM-1, IRM-2 and IRM-s earlier (`Sampling`).

Writes ROOT/table-N.txt, which it prints, and ROOT/table-N.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

from diffbfr.errors import UsageError
from diffbfr.metrics.frechet import NUM_FEATURES
from diffbfr.stages import Mode
from diffbfr.text import format_columns
from diffbfr.training.config import Precision
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.dataset.manifest import open_dataset, read_info
from pipelines.evaluation.metric_table import metric_table
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.command import run_command
from pipelines.experiments.paper.arms import Arm, arms_of, scaled_start
from pipelines.experiments.paper.claims import Finding, judge, overall
from pipelines.experiments.paper.numbers import METRICS, paper_value
from pipelines.experiments.paper.restoring import (
    RestoreTask,
    Sampling,
    make_restorer,
    plan_restoring,
    write_references,
)
from pipelines.experiments.paper.scoring import Scored, score_arms
from pipelines.experiments.paper.trainings import Plan, Trained, recipe_of, train_seed
from pipelines.experiments.spread import parse_seeds, spread
from pipelines.flows import train_cascade

DIGITS: Final = {"ssim": 4, "psnr": 2, "fid": 2, "niqe": 3, "lpips_alex": 4}


@dataclass(frozen=True)
class HoldOut:
    """A set of faces that no stage was trained on."""

    name: str
    faces: str


@dataclass(frozen=True)
class Request:
    """One table: what is trained, how it is sampled, and what it is measured on."""

    table: str
    plan: Plan
    hold_outs: tuple[HoldOut, ...]
    sampling: Sampling
    max_faces: int
    workers: int


def run(request: Request) -> str:
    """Train, restore, score and judge; the table as text."""
    arms = arms_of(request.table)
    # before the trainings, which take hours: a hold-out may be missing or empty
    faces = [_degraded(request, hold_out) for hold_out in request.hold_outs]
    trained = [train_seed(request.plan, seed) for seed in request.plan.seeds]
    scored = {}
    with Cluster(ClusterConfig(num_workers=request.workers)) as cluster:
        for hold_out, (dataset, keys) in zip(request.hold_outs, faces, strict=True):
            template = _template(request, hold_out, dataset, keys, trained[0], arms)
            folder = _restore(template, hold_out.name, trained, cluster)
            scored[hold_out.name] = score_arms(folder, request.plan.seeds, arms, cluster)
    findings = {name: judge(request.table, found) for name, found in scored.items()}
    text = format_report(request, scored, findings)
    out = Path(request.plan.root, f"table-{request.table}")
    out.with_suffix(".txt").write_text(f"{text}\n")
    out.with_suffix(".json").write_text(json.dumps(_plain(request, scored, findings), indent=1) + "\n")
    return text


def _degraded(request: Request, hold_out: HoldOut) -> tuple[str, tuple[str, ...]]:
    """The degraded faces of a hold-out, all of them its test split: the dataset, and the keys to restore."""
    recipe = request.plan.recipe
    data = replace(recipe.data, faces=hold_out.faces, test_fraction=1.0)
    report = train_cascade.run(replace(recipe, data=data), request.plan.root, until="shard")
    store = ArtifactStore(request.plan.root)
    record = store.by_id(report.steps[0].artifact)
    assert record is not None
    dataset = store.artifact_dir(record.identity)
    keys = tuple(open_dataset(dataset).keys("test"))[: request.max_faces]
    if len(keys) < 2:
        raise UsageError(f"{hold_out.faces} holds {len(keys)} usable faces; expected at least 2; give more")
    return dataset, keys


def _template(
    request: Request,
    hold_out: HoldOut,
    dataset: str,
    keys: tuple[str, ...],
    trained: Trained,
    arms: Sequence[Arm],
) -> RestoreTask:
    """A task over all faces; its folder is named by all that the outputs depend on but the arm and seed."""
    content = read_info(dataset).content_id
    sampling = request.sampling
    end = "" if sampling.end is None else f"-{sampling.end:g}"
    settings = f"{sampling.mode}-{sampling.evaluations}{end}-{len(keys)}"
    name = f"{hold_out.name}-{content[:8]}-{trained.cascade.name[:8]}-{settings}"
    folder = Path(request.plan.root, "outputs", name).absolute()
    return RestoreTask(dataset, keys, trained, tuple(arms), request.sampling, folder)


def _restore(template: RestoreTask, name: str, trained: Sequence[Trained], cluster: Cluster) -> Path:
    """Restore a hold-out with every seed's weights; the folder of the outputs."""
    write_references(template.dataset, template.keys, template.folder)
    for found in trained:
        of_seed = replace(template, trained=found)
        tasks = plan_restoring(of_seed)
        if tasks:
            cluster.map_actors(
                _Factory(of_seed),
                tasks,
                label=f"restore {name} {found.seed}",
                unit="faces",
                weight=lambda task: len(task.keys),
            )
    return template.folder


@dataclass(frozen=True)
class _Factory:
    """Makes the restorer of a worker."""

    template: RestoreTask

    def __call__(self) -> Any:
        return make_restorer(self.template)


def format_report(
    request: Request, scored: Mapping[str, Scored], findings: Mapping[str, Sequence[Finding]]
) -> str:
    """The table of each hold-out with the paper's figures, and the verdicts."""
    plan = request.plan
    lines = [
        f"Table {request.table} at {plan.recipe.data.hq_px} px; {plan.samples:,} training samples for IRM-1, "
        f"IRM-2 and IRM-s each, {plan.samples // 2:,} for TEM; {len(plan.seeds)} seeds; {_how(request)}"
    ]
    for name, found in scored.items():
        lines += ["", f"{name}, {found.num_faces} faces, card {found.card}:", _table(request, found)]
        if found.num_faces <= NUM_FEATURES:
            lines.append(f"FID of {found.num_faces} faces is biased upwards, equally for every row.")
        lines += ["", *_verdicts(findings[name])]
    return "\n".join(lines)


def _how(request: Request) -> str:
    if request.sampling.mode == "faithful":
        return "Algorithm 1 step by step"
    end = (
        "" if request.sampling.end is None else f", the last at log(signal / noise) {request.sampling.end:g}"
    )
    return f"few-step solvers, {request.sampling.evaluations} evaluations at full size{end}"


def _table(request: Request, found: Scored) -> str:
    table = metric_table()
    labels = {metric: table[metric].info.label for metric in METRICS}
    head = ["", "start here"]
    for metric in METRICS:
        head += [f"{labels[metric]} {'↑' if table[metric].info.better == 'higher' else '↓'}", "paper"]
    rows: list[Sequence[str]] = [head]
    for arm in arms_of(request.table):
        row = [arm.title, _start(request.plan, arm)]
        for metric in METRICS:
            row += [_cell(found, arm, metric), _papers(arm, metric)]
        rows.append(row)
    missing = [f"{labels[metric]}: {reason}" for metric, reason in found.unavailable.items()]
    return "\n".join([format_columns(rows), *missing])


def _start(plan: Plan, arm: Arm) -> str:
    """The step that an arm starts at: t of IRM-2, or of TEM."""
    if arm.is_input:
        return ""
    stage = plan.recipe.irm2.stage if arm.n2 is None else plan.recipe.tem.stage
    start = arm.n1 if arm.n2 is None else arm.n2
    return "noise" if start is None else str(scaled_start(stage.schedule, start, stage.px))


def _cell(found: Scored, arm: Arm, metric: str) -> str:
    series = found.series(arm.name, metric)
    if not series:
        return "unavailable"
    values, digits = spread(series), DIGITS[metric]
    return f"{values.mean:.{digits}f} [{values.lowest:.{digits}f}, {values.highest:.{digits}f}]"


def _papers(arm: Arm, metric: str) -> str:
    value = paper_value(arm.name, metric)
    return "" if value is None else f"{value:.{DIGITS[metric]}f}"


def _verdicts(findings: Sequence[Finding]) -> list[str]:
    """A line a claim, and one for each of its metrics."""
    labels = metric_table()
    lines = []
    for claim in dict.fromkeys(finding.claim for finding in findings):
        about = [finding for finding in findings if finding.claim == claim]
        lines.append(f"{overall(about)}: {claim}")
        for finding in about:
            here = "" if finding.spread is None else f"; here {_interval(finding)}"
            lines.append(
                f"  {labels[finding.metric].info.name}: {finding.verdict}; paper {finding.paper:+.4g}{here}"
            )
    lines.append("(numbers below zero agree with the paper; brackets are 95 % intervals over seeds)")
    return lines


def _interval(finding: Finding) -> str:
    assert finding.spread is not None
    found = finding.spread
    return f"{found.mean:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"


def _plain(
    request: Request, scored: Mapping[str, Scored], findings: Mapping[str, Sequence[Finding]]
) -> dict[str, Any]:
    plan = request.plan
    return {
        "table": request.table,
        "px": plan.recipe.data.hq_px,
        "samples": plan.samples,
        "seeds": plan.seeds,
        "sampling": asdict(request.sampling),
        "starts": {arm.name: _start(plan, arm) for arm in arms_of(request.table)},
        "hold_outs": {name: asdict(found) for name, found in scored.items()},
        "findings": {name: list(map(_finding, found)) for name, found in findings.items()},
    }


def _finding(finding: Finding) -> dict[str, Any]:
    """JSON has no infinity: a verdict of one seed has no interval."""
    found = finding.spread
    interval = None if found is None or found.half_width == float("inf") else [found.low, found.high]
    return {
        "claim": finding.claim,
        "metric": finding.metric,
        "verdict": finding.verdict,
        "mean": None if found is None else found.mean,
        "interval": interval,
        "paper": finding.paper,
    }


def parse_hold_out(text: str) -> HoldOut:
    """A hold-out from NAME=FACES."""
    name, separator, faces = text.partition("=")
    if not separator or not faces or not name.replace("-", "").isalnum():
        raise UsageError(
            f"found the hold-out {text!r}; expected NAME=FACES, a word and a folder or archive, such as "
            "val=val.zip"
        )
    return HoldOut(name, faces)


def _request(words: Sequence[str] | None) -> Request:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("2", "3", "4"))
    parser.add_argument("root")
    parser.add_argument("--faces", required=True)
    parser.add_argument("--hold-out", action="append", required=True)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--max-faces", type=int, default=96)
    parser.add_argument("--mode", choices=get_args(Mode), default="fast")
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--end", type=float)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(words)
    recipe = recipe_of(given.px, given.faces)
    recipe = replace(recipe, cluster=replace(recipe.cluster, num_workers=given.workers))
    plan = Plan(recipe, given.root, given.samples, parse_seeds(given.seeds), given.precision)
    return Request(
        given.table,
        plan,
        tuple(map(parse_hold_out, given.hold_out)),
        Sampling(given.mode, given.evaluations, given.end),
        given.max_faces,
        given.workers,
    )


def main(words: Sequence[str] | None = None) -> None:
    """Run the command of this module's first lines."""
    text = run(_request(words))
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    run_command(main)
