"""`diffbfr evaluate`: measure a cascade, the outputs of any method, or compare two such measurements."""

from typing import TYPE_CHECKING, Annotated

import typer

from diffbfr.errors import UsageError
from pipelines.cli import options
from pipelines.cli.output import say, say_block, say_json
from pipelines.cli.run import run_until

if TYPE_CHECKING:
    from diffbfr.metrics.cards import ProtocolCard
    from pipelines.cluster import ClusterConfig
    from pipelines.flows.evaluate_pairs import PairRequest

DEFAULT_CARD = "ffhq-holdout"

Restored = Annotated[
    str | None,
    typer.Option("--restored", help="Outputs of any method: a folder, zip or tar.", metavar="URI"),
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="Ground truths of the same names and sizes.", metavar="URI"),
]
LowQuality = Annotated[
    str | None,
    typer.Option("--lq", help="The inputs, of the same names, for the consistency figure.", metavar="URI"),
]
Protocol = Annotated[
    str | None,
    typer.Option("--protocol", help="Card: paper, celeba-test, or ffhq-holdout (any pairs).", metavar="CARD"),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics", help="Only some metrics of the card, e.g. psnr,ssim,lpips_alex.", metavar="NAMES"
    ),
]
Statistics = Annotated[
    str | None,
    typer.Option("--statistics", help="Statistics of the set that FID is against (.npz).", metavar="FILE"),
]
WriteStatistics = Annotated[
    str | None,
    typer.Option(
        "--write-statistics", help="Write the statistics of --reference to this .npz.", metavar="FILE"
    ),
]
AllowFew = Annotated[
    bool, typer.Option("--allow-few", help="Print FID also of too few pictures, or of other data.")
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Folder of the result; below --root if not given.", metavar="URI"),
]
Compare = Annotated[
    tuple[str, str] | None,
    typer.Option("--compare", help="Two results of one card: a paired test.", metavar="A B"),
]


def evaluate(
    model: options.Model = "",
    recipe: options.Recipe = options.DEFAULT_RECIPE,
    faces: options.Faces = None,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    as_json: options.Json = False,
    restored: Restored = None,
    reference: Reference = None,
    lq: LowQuality = None,
    protocol: Protocol = None,
    metrics: Metrics = None,
    statistics: Statistics = None,
    write_statistics: WriteStatistics = None,
    allow_few: AllowFew = False,
    out: Out = None,
    results: Compare = None,
) -> None:
    """Measure a cascade on held-out faces: the one that the recipe trains, or any that --model names.

    With --restored and --reference, measure the outputs of any method under a protocol card; with --compare,
    test whether two such results differ.
    """
    pairs = {
        "--restored": restored,
        "--reference": reference,
        "--lq": lq,
        "--protocol": protocol,
        "--metrics": metrics,
        "--statistics": statistics,
        "--write-statistics": write_statistics,
        "--allow-few": allow_few,
        "--out": out,
    }
    given = [name for name, value in pairs.items() if value]
    if results is not None:
        _refuse("--compare", [*given, *(["--model"] if model else [])])
        _compare(results, as_json)
        return
    if not given:
        run_until("evaluate", recipe, faces, root, config, overrides, plan, as_json, model)
        return
    _refuse(
        given[0],
        [name for name, value in (("--model", model), ("--faces", faces), ("--plan", plan)) if value],
    )
    from diffbfr.metrics.cards import find_card
    from pipelines.recipes.overrides import load

    card = find_card(protocol or DEFAULT_CARD)
    cluster = load(recipe, config, tuple(overrides or ())).cluster
    if reference is None:
        raise UsageError(
            f"{given[0]} without --reference; expected the ground truths; add --reference FOLDER"
        )
    if restored is None:
        if write_statistics is None:
            raise UsageError(
                "--reference without --restored; expected outputs to measure, or --write-statistics"
            )
        _write_statistics(reference, card, write_statistics, cluster, as_json)
        return
    from pipelines.evaluation.metric_table import chosen_metrics
    from pipelines.flows.evaluate_pairs import PairRequest

    request = PairRequest(
        restored, reference, card, chosen_metrics(card, metrics), lq, statistics or "", allow_few
    )
    _evaluate_pairs(request, root, out, write_statistics, cluster, as_json)


def _refuse(option: str, others: list[str]) -> None:
    if others:
        raise UsageError(f"{option} goes with no {others[0]}; expected one kind of evaluation; leave out one")


def _evaluate_pairs(
    request: "PairRequest",
    root: str,
    out: str | None,
    write_statistics: str | None,
    config: "ClusterConfig",
    as_json: bool,
) -> None:
    from diffbfr.metrics.frechet import FID_EMBEDDING, to_npz
    from pipelines import storage
    from pipelines.cluster import Cluster
    from pipelines.evaluation.pair_scores import format_scores, to_json
    from pipelines.flows.evaluate_pairs import evaluate_pairs, result_folder

    folder = out or result_folder(request, root)
    storage.check_folder(folder)
    storage.check_writable(folder)
    with Cluster(config) as cluster:
        report = evaluate_pairs(request, folder, cluster)
    if write_statistics is not None:
        if FID_EMBEDDING not in report.references:
            raise UsageError("FID was not measured, so there are no statistics; leave out --write-statistics")
        storage.write_atomic(write_statistics, to_npz(report.references[FID_EMBEDDING]))
    if as_json:
        say_json({"folder": report.folder, "report": report.page, **to_json(report.scores)})
        return
    say_block(format_scores(report.scores))
    say(f"scores: {report.folder}")
    say(f"report: {report.page}")


def _write_statistics(
    reference: str, card: "ProtocolCard", place: str, config: "ClusterConfig", as_json: bool
) -> None:
    from pipelines.cluster import Cluster
    from pipelines.flows.reference_statistics import make_statistics

    with Cluster(config) as cluster:
        made = make_statistics(reference, card, place, cluster)
    facts = {"statistics": place, "pictures": made.count, "embedding": made.embedding}
    if as_json:
        say_json({**facts, "full_rank": not made.is_singular})
        return
    say(f"{place}: mean and covariance of {made.count} pictures, {made.embedding}")
    if made.is_singular:
        say(f"{made.count} pictures give no covariance of full rank ({len(made.mean) + 1} would)")


def _compare(results: tuple[str, str], as_json: bool) -> None:
    from pipelines.evaluation.comparison import compare, format_comparison
    from pipelines.evaluation.pair_scores import read_pair_scores

    comparison = compare(*map(read_pair_scores, results))
    if as_json:
        say_json(comparison)
    else:
        say_block(format_comparison(comparison))
