"""The restore step of a run: an archive of degraded held-out faces, restored with the new cascade."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.steps.definition import StepDef, driver_only, without

if TYPE_CHECKING:
    from pipelines.execution.dag import StepOutput
    from pipelines.recipes.recipe import Recipe
    from pipelines.steps.context import RunContext

ARCHIVE = "archive.zip"
MIRROR = "restored"


@driver_only
def _config(recipe: "Recipe") -> dict[str, Any]:
    """What is restored and how, without `unit_size`, which changes no output."""
    from pipelines.execution.artifact_store import flatten

    held_out = {"split": recipe.evaluate.split, "variant": recipe.evaluate.variant}
    return without(flatten(recipe.restore), "unit_size") | {"mode": recipe.sampling.mode} | held_out


@driver_only
def _build(ctx: "RunContext", folder: str) -> "StepOutput":
    """Zip one degradation of some held-out faces, then restore that archive."""
    from pipelines import storage
    from pipelines.evaluation.sample_archive import zip_degraded
    from pipelines.execution.dag import StepOutput
    from pipelines.execution.model_ref import pin_model
    from pipelines.flows.restore_archive import RestoreOptions, require_clean, restore_archive

    config, held_out = ctx.recipe.restore, ctx.recipe.evaluate
    archive = storage.join(folder, ARCHIVE)
    photos = zip_degraded(ctx.artifact_dir("shard"), held_out.split, config.num_photos, held_out.variant)
    storage.write_atomic(archive, photos)
    options = RestoreOptions(
        aligned=True,
        mode=ctx.recipe.sampling.mode,
        seed=config.seed,
        unit_size=config.unit_size,
        batch_faces=config.batch_faces,
    )
    cascade = pin_model(ctx.artifact_dir("cascade"))
    report = restore_archive(archive, storage.join(folder, MIRROR), cascade, options, ctx.cluster)
    require_clean(report)
    outputs = {
        "archive": ARCHIVE,
        "ledger": f"{MIRROR}/ledger.parquet",
        "record": f"{MIRROR}/restore.json",
    }
    outputs |= {row.output: f"{MIRROR}/{row.output}" for row in report.rows}
    return StepOutput(outputs, asdict(report.counts))


@driver_only
def _estimate(recipe: "Recipe") -> str:
    return f"{recipe.restore.num_photos} photos"


RESTORE = StepDef(
    "restore",
    (
        "diffbfr.cascade",
        "pipelines.evaluation.sample_archive",
        "pipelines.execution.model_ref",
        "pipelines.flows.restore_archive",
    ),
    _config,
    _build,
    _estimate,
)
