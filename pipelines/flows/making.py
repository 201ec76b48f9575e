"""How each step is made: its tasks, spread over the cluster, and what it leaves in its folder.

Every function here takes the workshop and the artifact's folder and returns what it made. The work itself is in `pipelines/steps`, and so
is what is chosen for it: code there is part of a step's identity, code here is not.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from diffbfr.errors import UsageError
from diffbfr.stages import STAGE_NAMES, StageName
from pipelines import commits, storage
from pipelines.artifacts import OutputRef
from pipelines.flows.graph import Made, Step
from pipelines.flows.journal import Journal
from pipelines.flows.panels import Panels
from pipelines.flows.workshop import Workshop, local, num_side_by_side
from pipelines.registry import model_digest

ARCHIVE, MIRROR = "archive.zip", "restored"


def make_dataset(shop: Workshop, folder: str) -> Made:
    """Photos to shards, a Ray task a shard, with Eq. 13 pre-sampled."""
    from pipelines import manifest
    from pipelines.sources import open_source
    from pipelines.steps.earlier import siblings
    from pipelines.steps.shard import finish_dataset, plan_shards, shard

    data = shop.recipe.data
    tasks = plan_shards(open_source(data.faces), data.shard, folder, siblings(folder))
    shop.cluster.map(shard, tasks, label="shard", unit="img", weight=lambda task: task.num_photos)
    info = finish_dataset(folder, tasks, data.max_bad)
    tables = (manifest.members_path(column.column) for column in data.shard.columns)
    index = (manifest.DATASET_RECORD, manifest.SAMPLES, manifest.QUARANTINE, *tables)
    return Made(_committed_files(folder, "commits", len(tasks), index), asdict(info), info.content_id)


def make_stage(name: StageName) -> Callable[[Workshop, str], Made]:
    """Return the maker of one stage: Ray Train, DDP, from the newest checkpoint."""

    def make(shop: Workshop, folder: str) -> Made:
        from pipelines.steps.train import TrainTask, train_stage

        config = shop.recipe.stage(name)
        column = shop.facts("condition-irm1")["column"] if name == "irm2" and "condition-irm1" in shop.steps else ""
        task = TrainTask(
            stage=config.stage,
            config=config.training,
            dataset=shop.folder("shard"),
            folder=folder,
            column=column,
            column_model=shop.facts("condition-irm1")["irm1"] if column else "",
            initial=shop.initial_folder(),
            initial_digest=shop.initial_digest(),
            recompute_px=shop.recipe.cluster.recompute_px,
            micro_batch=shop.recipe.cluster.micro_batch,
            compiled=shop.recipe.cluster.compile,
        )
        total = config.training.num_steps * config.training.global_batch
        step = f"train-{name}"
        on_panel = partial(shop.on_panel, step)
        beside = shop.recipe.cluster.num_workers > 0 and config.training.average_samples is not None
        panels = Panels(folder, task.dataset, config.stage, column, beside=beside, on_panel=on_panel)
        with Journal(storage.join(folder, "journal.json"), partial(shop.on_posts, step)) as journal, panels:
            report = shop.cluster.train(
                train_stage,
                task,
                label=name,
                total=total,
                root=shop.store.root,
                on_metrics=journal.add,
                side_by_side=num_side_by_side(step),
            )
        outputs = {"weights": f"{name}.safetensors", "spec": f"{name}.json"}
        if storage.exists(storage.join(folder, "journal.json")):  # a disk that refused it does not cost the training
            outputs["journal"] = "journal.json"
        facts = asdict(report) | {"digest": model_digest(local(folder), (name,)), "content_id": shop.facts("shard")["content_id"]}
        if panels.seconds:
            facts["panel_seconds"] = panels.seconds
        if column:
            facts |= {"column": column, "irm1": task.column_model}
        return Made(outputs, facts, facts["digest"])

    return make


def make_column(shop: Workshop, folder: str) -> Made:
    """Run IRM-1 over every key and variant, on Ray actors, and append the column that IRM-2 trains on."""
    from pipelines import manifest
    from pipelines.steps.condition import ConditionTask, finish_condition, make_conditioner, plan_condition

    dataset, digest = shop.folder("shard"), stage_digest(shop, "irm1")
    template = ConditionTask(
        index=0,
        dataset=dataset,
        column=_column_name(shop, digest),
        keys=(),
        variants=shop.recipe.data.variants,
        stage=shop.recipe.irm1.stage,
        model=shop.folder("train-irm1"),
        model_digest=digest,
        mode=shop.recipe.sampling.mode,
    )
    tasks = plan_condition(template)
    shop.cluster.map_actors(
        partial(make_conditioner, tasks[0]), tasks, label="condition", unit="img", weight=lambda task: task.num_pictures, one_core=True
    )
    info = finish_condition(tasks, shop.recipe.column.max_bad_share, storage.join(folder, "quarantine.json"))
    storage.write_json(storage.join(folder, "column.json"), asdict(info) | {"dataset": shop.steps["shard"].id})
    index = (storage.join(info.column, manifest.COLUMN_RECORD), manifest.members_path(info.column))
    files = _committed_files(dataset, f"{info.column}/commits", len(tasks), index, f"../../shard/{shop.steps['shard'].id}/")
    pictures = sum(task.num_pictures for task in tasks)
    seen = [asdict(info), [file.sha256 for file in files.values() if isinstance(file, OutputRef)]]
    return Made(
        {"record": "column.json", **files},
        {"column": info.column, "irm1": digest, "pictures": pictures, "quarantined": len(info.quarantined)},
        hashlib.sha256(json.dumps(seen).encode()).hexdigest(),
    )


def make_cascade(shop: Workshop, folder: str) -> Made:
    """Put the three stages into one folder, with the record of where they come from, last."""
    from diffbfr.cascade import cascade_digest, write_record
    from pipelines.steps.assemble import assemble

    outputs = assemble(folder, {name: (shop.recipe.stage(name).stage, shop.folder(f"train-{name}")) for name in STAGE_NAMES})
    stages = {name: {"artifact": shop.steps[f"train-{name}"].id, "digest": stage_digest(shop, name)} for name in STAGE_NAMES}
    dataset = shop.facts("shard")
    record = {
        "recipe": shop.recipe.name,
        "content_id": dataset["content_id"],
        "dataset": shop.steps["shard"].id,
        "stages": stages,
        "init": shop.initial_digest(),
    }
    if not storage.is_remote(folder):
        write_record(Path(folder), record)
    else:
        storage.write_json(storage.join(folder, "cascade.json"), record)
    digest = cascade_digest(local(folder))
    return Made({**{name: name for name in outputs}, "record": "cascade.json"}, {"digest": digest, **record}, digest)


def make_evaluation(shop: Workshop, folder: str) -> Made:
    """Measure the cascade on held-out faces, and keep the scores of each, the table and the panels."""
    from pipelines.flows.measuring import measure
    from pipelines.steps.pinned_cascade import pin_cascade
    from pipelines.steps.scores import means, write_evaluation

    cascade = shop.given.near(storage.join(folder, "cascade")) if shop.given else pin_cascade(shop.folder("cascade"))
    evaluation = measure(shop.cluster, cascade, shop.folder("shard"), shop.recipe.evaluate, shop.recipe.sampling.mode)
    files = write_evaluation(evaluation, folder)
    finite = {name: value for name, value in means(evaluation).items() if abs(value) != float("inf")}
    facts = {"faces": evaluation.protocol.num_images, **finite}
    return Made({name: name for name in files}, facts, storage.digest(storage.join(folder, "rows.csv")))


def make_versions(shop: Workshop, folder: str) -> Made:
    """Register each stage and the cascade, with their lineage and the evaluation, as candidates."""
    from pipelines.flows.registering import register_all

    versions = register_all(shop)
    storage.write_json(storage.join(folder, "versions.json"), versions)
    return Made({"versions": "versions.json"}, versions)


def make_restored_archive(shop: Workshop, folder: str) -> Made:
    """Zip the degraded photos of some held-out faces and restore that archive, as a user would."""
    from pipelines.flows.restore_archive import RestoreOptions, require_clean, restore_archive
    from pipelines.steps.held_out import zip_degraded
    from pipelines.steps.pinned_cascade import pin_cascade

    config, shown = shop.recipe.restore, shop.recipe.evaluate
    place = storage.join(folder, ARCHIVE)
    storage.write_atomic(place, zip_degraded(shop.folder("shard"), shown.split, config.num_photos, shown.variant))
    options = RestoreOptions(aligned=True, mode=shop.recipe.sampling.mode, seed=config.seed, unit_size=config.unit_size)
    report = restore_archive(place, storage.join(folder, MIRROR), pin_cascade(shop.folder("cascade")), options, shop.cluster)
    require_clean(report)
    outputs = {"archive": ARCHIVE, "ledger": f"{MIRROR}/ledger.parquet", "record": f"{MIRROR}/restore.json"}
    outputs |= {row.output: f"{MIRROR}/{row.output}" for row in report.rows}
    return Made(outputs, asdict(report.counts))


def stage_digest(shop: Workshop, name: StageName) -> str:
    """Identity of a trained stage as this recipe samples it: `model_digest` of its weights beside the recipe's specification."""
    from pipelines.steps.assemble import spec_text

    record = shop.store.find(shop.steps[f"train-{name}"].identity)
    if record is None:
        raise UsageError(f"train-{name} is not finished, or was changed meanwhile; expected its weights; run the same command again")
    spec = hashlib.sha256(spec_text(shop.recipe.stage(name).stage)).hexdigest()
    lines = f"{name}.json\0{spec}\n{name}.safetensors\0{record.outputs['weights'].sha256}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def _column_name(shop: Workshop, digest: str) -> str:
    """The column that this run's IRM-1 makes; an IRM-1 that came out otherwise makes another."""
    made = hashlib.sha256(f"{shop.steps['condition-irm1'].id}\0{digest}".encode()).hexdigest()
    return f"irm1-{made[:12]}"


def plan_digest(steps: list[Step]) -> str:
    """Identity of a whole run."""
    return hashlib.sha256(json.dumps([step.id for step in steps]).encode()).hexdigest()[:20]


def _committed_files(dataset: str, folder: str, num_shards: int, index: Sequence[str], prefix: str = "") -> dict[str, str | OutputRef]:
    """Everything that shards committed under `folder`, with the digests that are already known, and the files that index it."""
    files: dict[str, str | OutputRef] = {}
    for number in range(num_shards):
        commit = commits.read(dataset, folder, number)
        for tar in commit.tars if commit is not None else ():
            files[tar.tar] = OutputRef(f"{prefix}{tar.tar}", tar.num_bytes, tar.sha256)
    return files | {name: f"{prefix}{name}" for name in index}
