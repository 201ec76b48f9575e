"""What must run again after an edit: exactly the steps that it reaches, each with a reason that names the
field, file or input.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from pipelines import storage
from pipelines.execution import fingerprint
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.execution.fingerprint import CONTENT_MODULES, TRANSPORT_MODULES, is_declared, reached_modules
from pipelines.flows import train_cascade
from pipelines.flows.register import REGISTER
from pipelines.flows.restore_samples import RESTORE
from pipelines.recipes.overrides import change
from pipelines.steps import context
from pipelines.steps.assemble import CASCADE
from pipelines.steps.condition import CONDITION
from pipelines.steps.definition import StepDef
from pipelines.steps.evaluate import EVALUATE
from pipelines.steps.shard import SHARD
from pipelines.steps.train import TRAIN
from tests.pipelines.flows.conftest import PROJECT, Place, flip
from tests.pipelines.flows.pocket import STEPS as EVERY_STEP

pytestmark = pytest.mark.slow

TRAINED = EVERY_STEP[1:]
FROM_CASCADE = EVERY_STEP[5:]
FROM_IRM2 = EVERY_STEP[4:]
FROM_COLUMN = EVERY_STEP[3:]
FROM_IRM1 = ("train-irm1", *FROM_COLUMN)
FROM_TEM = ("train-tem", *FROM_CASCADE)
SCORES = ("evaluate", "register")
NEEDS = {
    "shard": {},
    "train-irm1": {"dataset": "shard"},
    "train-tem": {"dataset": "shard"},
    "condition-irm1": {"dataset": "shard", "irm1": "train-irm1"},
    "train-irm2": {"dataset": "shard", "column": "condition-irm1"},
    "cascade": {"irm1": "train-irm1", "irm2": "train-irm2", "tem": "train-tem"},
    "evaluate": {"cascade": "cascade", "dataset": "shard"},
    "register": {"cascade": "cascade", "evaluation": "evaluate"},
    "restore": {"cascade": "cascade", "dataset": "shard"},
}
"""Step -> its inputs by name -> the step that makes each."""


@dataclass(frozen=True)
class Edit:
    """One row of the table: what is done, which steps must run again, and what the plan says of those that
    it reaches directly.
    """

    name: str
    runs: tuple[str, ...]
    reason: str = ""
    settings: tuple[tuple[str, object], ...] = ()
    code: tuple[str, str, str] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    disk: Callable[[Place], None] | None = None
    tool: str = ""


def setting(path: str, value: object, runs: tuple[str, ...], reason: str = "") -> Edit:
    return Edit(f"{path}={value}", runs, reason, settings=((path, value),))


def code(file: str, old: str, new: str, runs: tuple[str, ...], reason: str = "", name: str = "") -> Edit:
    return Edit(name or f"code of {file}", runs, reason, code=(file, old, new))


def disk(name: str, act: Callable[[Place], None], runs: tuple[str, ...], reason: str = "") -> Edit:
    return Edit(name, runs, reason, disk=act)


def train_otherwise(place: Place) -> None:
    """Make the weights of IRM-1 again with another result, as another machine may."""
    store = ArtifactStore(str(place.root))
    record = store.latest("train-irm1")
    assert record is not None
    file = place.output("train-irm1", "irm1.safetensors")
    save_file({name: tensor + 1e-6 for name, tensor in load_file(file).items()}, file)
    outputs = {name: output.path for name, output in record.outputs.items()}
    store.commit(record.identity, outputs, record.metadata, 1.0, content=storage.digest(file))


def rename(place: Place) -> None:
    photo = min(place.photos.rglob("*.png"))
    photo.rename(photo.with_name("another.png"))


EDITS = (
    # settings, one of each kind
    setting("data.variants", 2, EVERY_STEP, "config variants: 1 -> 2"),
    setting("data.seed", 1, EVERY_STEP, "config seed: 0 -> 1"),
    setting("data.shard_size", 5, EVERY_STEP, "config shard_size: 6 -> 5"),
    setting("data.test_fraction", 0.5, EVERY_STEP, "config test_fraction: 0.25 -> 0.5"),
    setting("data.degradation.sigma", (0.0, 8.0), EVERY_STEP, "config degradation.sigma"),
    setting("data.hq_codec", "png", EVERY_STEP, "config hq_codec: webp -> png"),
    setting("data.max_bad", 3, ()),
    setting("data.max_enlargement", 2.0, ()),
    setting("column.max_bad_share", 0.5, ()),
    setting("irm1.training.seed", 1, FROM_IRM1, "config training.seed: 0 -> 1"),
    setting("irm1.stage.loss", "l2", FROM_IRM1, "config stage.loss: l1 -> l2"),
    setting("tem.training.learning_rate", 2e-3, FROM_TEM, "config training.learning_rate: 0.001 -> 0.002"),
    setting("irm2.training.num_samples", 36, FROM_IRM2, "config training.num_samples: 32 -> 36"),
    setting(
        "irm2.stage.resize_kernel", "bilinear", FROM_IRM2, "config stage.resize_kernel: bicubic -> bilinear"
    ),
    setting("tem.training.checkpoint_samples", 16, ()),
    setting("irm1.training.max_skipped", 20, ()),
    setting(
        "irm1.stage.fast.num_evaluations", 5, FROM_COLUMN, "config irm1.stage.fast.num_evaluations: 4 -> 5"
    ),
    setting(
        "irm2.stage.fast.num_evaluations", 4, FROM_CASCADE, "config irm2.stage.fast.num_evaluations: 3 -> 4"
    ),
    setting("irm2.stage.start", 600, FROM_CASCADE, "config irm2.stage.start: 1000 -> 600"),
    setting(
        "tem.stage.reverse_variance",
        "posterior",
        FROM_CASCADE,
        "config tem.stage.reverse_variance: beta -> posterior",
    ),
    setting("sampling.mode", "faithful", ("condition-irm1", *FROM_IRM2), "config mode: fast -> faithful"),
    setting("evaluate.seeds", (0, 1), SCORES, "config seeds: [0] -> [0, 1]"),
    setting("evaluate.num_panels", 1, SCORES, "config num_panels: 2 -> 1"),
    setting("evaluate.max_faces", 2, SCORES, "config max_faces: null -> 2"),
    setting("evaluate.batch", 2, ()),
    setting("evaluate.split", "val", (*SCORES, "restore"), "config split: test -> val"),
    setting("restore.seed", 1, ("restore",), "config seed: 0 -> 1"),
    setting("restore.num_photos", 2, ("restore",), "config num_photos: 3 -> 2"),
    setting("restore.unit_size", 2, ()),
    setting("restore.batch_faces", 2, ("restore",), "config batch_faces: 4 -> 2"),
    setting("tracking.uri", "http://127.0.0.1:9", ("register",), "config uri: null -> http://127.0.0.1:9"),
    setting("tracking.experiment", "other", ("register",), "config experiment: diffbfr -> other"),
    setting("init", str(PROJECT / "diffbfr" / "weights" / "tiny"), TRAINED, "input init: absent"),
    # where and how it runs
    setting("cluster.num_workers", 7, ()),
    setting("cluster.cpus_per_worker", 3, ()),
    setting("cluster.address", "auto", ()),
    Edit("no GPU", (), environment=(("CUDA_VISIBLE_DEVICES", ""),)),
    Edit("number of threads", (), environment=(("OMP_NUM_THREADS", "7"),)),
    Edit(
        "log level", (), environment=(("MLFLOW_LOGGING_LEVEL", "DEBUG"), ("RAY_BACKEND_LOG_LEVEL", "debug"))
    ),
    Edit("place of the cache", (), environment=(("DIFFBFR_CACHE", "/nowhere"),)),
    Edit(
        "weights of the perceptual distance",
        SCORES,
        "config squeezenet: ",
        environment=(("DIFFBFR_SQUEEZENET", __file__),),
    ),
    Edit(
        "weights of the identity cosine",
        SCORES,
        "config identity",
        environment=(("DIFFBFR_IDENTITY", __file__),),
    ),
    Edit("version of a codec", EVERY_STEP, "config tools.pillow: ", tool="pillow"),
    # code
    code(
        "diffbfr/degradation/noise.py",
        "\n\ndef ",
        "\n\nNEW = 1\n\n\ndef ",
        EVERY_STEP,
        "code diffbfr.degradation.noise changed",
    ),
    code("diffbfr/ema.py", "\n\nclass ", "\n\nNEW = 1\n\n\nclass ", TRAINED, "code diffbfr.ema changed"),
    code(
        "diffbfr/samplers.py",
        "\n\ndef ",
        "\n\nNEW = 1\n\n\ndef ",
        FROM_COLUMN,
        "code diffbfr.samplers changed",
    ),
    code("diffbfr/keys.py", "\n\ndef ", "\n\nNEW = 1\n\n\ndef ", FROM_COLUMN, "code diffbfr.keys changed"),
    code(
        "diffbfr/metrics/psnr.py",
        "\n\ndef ",
        "\n\nNEW = 1\n\n\ndef ",
        SCORES,
        "code diffbfr.metrics.psnr changed",
    ),
    code(
        "pipelines/steps/condition.py",
        "\n\ndef ",
        "\n\nNEW = 1\n\n\ndef ",
        FROM_COLUMN,
        "code pipelines.steps.condition changed",
    ),
    code(
        "pipelines/evaluation/panels.py",
        "\n\ndef ",
        "\n\nNEW = 1\n\n\ndef ",
        SCORES,
        "code pipelines.evaluation.panels changed",
    ),
    code(
        "pipelines/restoration/provenance.py",
        "\n\ndef ",
        "\n\nNEW = 1\n\n\ndef ",
        ("restore",),
        "code pipelines.restoration.provenance changed",
    ),
    code(
        "pipelines/restoration/output_names.py",
        "\n\ndef ",
        "\n\nNEW = 1\n\n\ndef ",
        ("restore",),
        "code pipelines.restoration.output_names changed",
    ),
    code(
        "pipelines/steps/evaluate.py",
        "keys_per_task=16",
        "keys_per_task=8",
        SCORES,
        "code pipelines.steps.evaluate changed",
    ),
    code(
        "pipelines/evaluation/sample_archive.py",
        "[:num_photos]",
        "[1:num_photos]",
        ("restore",),
        "code pipelines.evaluation.sample_archive changed",
    ),
    code(
        "pipelines/steps/assemble.py",
        "indent=1",
        "indent=2",
        FROM_CASCADE,
        "code pipelines.steps.assemble changed",
    ),
    code(
        "pipelines/steps/shard.py",
        'label="shard"',
        'label="shards"',
        (),
        name="how a step is spread over the cluster",
    ),
    code(
        "pipelines/steps/train.py",
        '"metrics.json"',
        '"curve.json"',
        TRAINED,
        "code pipelines.steps.train changed",
    ),
    code("pipelines/execution/runner.py", "\n\ndef ", "\n\nNEW = 1\n\n\ndef ", ()),
    code("pipelines/steps/context.py", "\n\ndef ", "\n\nNEW = 1\n\n\ndef ", ()),
    code("pipelines/registry/promotion.py", "\n\ndef ", "\n\nNEW = 1\n\n\ndef ", ()),
    code("pipelines/cli/run.py", "\n\ndef ", "\n\nNEW = 1\n\n\ndef ", ()),
    code("diffbfr/models/unet.py", "\n\nclass ", "\n\n# a comment\nclass ", (), name="a comment"),
    code("diffbfr/diffusion.py", '"""', '"""Another word. ', (), name="a docstring"),
    code("pipelines/steps/train.py", "\n\n\ndef ", "\n\n\n\n\n\ndef ", (), name="layout"),
    # files
    disk(
        "a flipped byte in a tar",
        lambda p: flip(p.output("shard", "lq/000001.tar")),
        ("shard",),
        "output lq/000001.tar has the digest",
    ),
    disk(
        "a flipped byte in the column",
        lambda p: flip(p.output("shard", "irm1-*/000000.tar")),
        ("condition-irm1",),
        "output irm1-",
    ),
    disk(
        "no table of lq",
        lambda p: p.output("shard", "manifest/columns/lq.parquet").unlink(),
        ("shard",),
        "output manifest/columns/lq",
    ),
    disk(
        "a flipped byte in the column's table",
        lambda p: flip(p.output("shard", "manifest/columns/irm1-*")),
        ("condition-irm1",),
        "output manifest",
    ),
    disk(
        "no record of the column",
        lambda p: p.output("shard", "irm1-*/column.json").unlink(),
        ("condition-irm1",),
        "output irm1-",
    ),
    disk(
        "a flipped byte in weights",
        lambda p: flip(p.output("train-tem", "tem.safetensors")),
        ("train-tem",),
        "output weights has the",
    ),
    disk(
        "a cut tar",
        lambda p: os.truncate(p.output("shard", "hq32/000000.tar"), 512),
        ("shard",),
        "output hq32/000000.tar has 512 bytes, recorded",
    ),
    disk(
        "a deleted output",
        lambda p: p.output("evaluate", "panels.png").unlink(),
        ("evaluate",),
        "output panels.png is missing",
    ),
    disk(
        "a deleted picture",
        lambda p: p.output("restore", "restored/photos/*.png").unlink(),
        ("restore",),
        "output photos/",
    ),
    disk(
        "a deleted record", lambda p: p.output("cascade", "record.json").unlink(), ("cascade",), "first run"
    ),
    disk("a deleted checkpoint", lambda p: shutil.rmtree(p.output("train-irm2", "checkpoints")), ()),
    disk("a touched output", lambda p: p.output("shard", "lq/000000.tar").touch(), ()),
    disk("no memory of what was whole", lambda p: p.output("shard", "verified.json").unlink(), ()),
    disk(
        "weights that came out otherwise",
        train_otherwise,
        FROM_COLUMN,
        "input irm1 was rebuilt with other content",
    ),
    disk(
        "a photo more",
        lambda p: shutil.copy(min(p.photos.rglob("*.png")), p.photos / "new.png"),
        EVERY_STEP,
        "input photos: ",
    ),
    disk("a photo less", lambda p: min(p.photos.rglob("*.png")).unlink(), EVERY_STEP, "input photos: "),
    disk("a changed photo", lambda p: flip(min(p.photos.rglob("*.png"))), EVERY_STEP, "input photos: "),
    disk("a renamed photo", rename, EVERY_STEP, "input photos: "),
    disk("a file that is no photo", lambda p: (p.photos / "notes.txt").write_text("words"), ()),
)


def planned(place: Place) -> dict[str, str]:
    """The steps that would run, with the reasons."""
    report = train_cascade.run(place.recipe, str(place.root), plan=True)
    return {step.name: step.reason for step in report.steps if step.action == "RUN"}


def test_the_table_is_long_enough_and_names_each_edit_once() -> None:
    assert len({edit.name for edit in EDITS}) == len(EDITS) >= 30


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_an_edit_runs_what_it_reaches_and_nothing_else(
    edit: Edit, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planned(place) == {}
    if edit.settings:
        place = replace(place, recipe=change(place.recipe, dict(edit.settings)))
    for name, value in edit.environment:
        monkeypatch.setenv(name, value)
    if edit.tool:
        monkeypatch.setattr(
            "pipelines.dataset.shard_plan.version", lambda tool: "99" if tool == edit.tool else version(tool)
        )
    if edit.code:
        file, old, new = edit.code
        shutil.copytree(place.code, tmp_path / "code")
        text = (tmp_path / "code" / file).read_text()
        assert old in text
        (tmp_path / "code" / file).write_text(text.replace(old, new, 1))
        monkeypatch.setattr(
            context, "code_fingerprint", partial(fingerprint.code_fingerprint, root=tmp_path / "code")
        )
    if edit.disk:
        edit.disk(place)
    found = planned(place)
    assert tuple(found) == edit.runs
    for step, why in found.items():
        changed = [rf"\binput {name}\b" for name, source in NEEDS[step].items() if source in found]
        direct = (
            [re.escape(edit.reason)] if not changed or edit.disk is train_otherwise else []
        )  # weights reach the cascade both ways
        assert edit.reason
        assert any(re.search(words, why) for words in (*changed, *direct)), (
            f"{step} runs again and names nothing that changed: {why}"
        )


STEPS = (SHARD, *TRAIN.values(), CONDITION, CASCADE, EVALUATE, REGISTER, RESTORE)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_module_that_a_step_reaches_is_declared_as_content_or_as_transport(step: StepDef) -> None:
    """So that no module that decides a result is left out because it was renamed, or is new."""
    undeclared = sorted(name for name in reached_modules(step.code) if not is_declared(name))
    assert undeclared == []


@pytest.mark.parametrize("module", [*CONTENT_MODULES, *TRANSPORT_MODULES])
def test_what_is_declared_exists(module: str) -> None:
    place = PROJECT.joinpath(*module.split("."))
    assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def test_the_inputs_that_the_table_knows_are_those_of_the_pipeline(finished: Place) -> None:
    store = ArtifactStore(str(finished.root))
    latest = {step: store.latest(step) for step in EVERY_STEP}
    for step, record in latest.items():
        assert record is not None
        made = {
            name: artifact
            for name, artifact in record.identity.inputs.items()
            if name not in ("photos", "init")
        }
        assert made == {name: latest[source].identity.id for name, source in NEEDS[step].items()}  # type: ignore[union-attr]


def test_damage_in_every_step_is_mended_with_the_same_bytes(finished: Place) -> None:
    store = ArtifactStore(str(finished.root))
    before = {step: store.latest(step) for step in EVERY_STEP}
    for step in EVERY_STEP:
        record = before[step]
        assert record is not None
        outputs = sorted(
            output.path for name, output in record.outputs.items() if name not in ("metrics", "archive")
        )
        file = Path(store.artifact_dir(record.identity), outputs[len(outputs) // 2])
        flip(file)
    assert tuple(planned(finished)) == EVERY_STEP
    train_cascade.run(finished.recipe, str(finished.root))
    assert planned(finished) == {}
    for step, record in before.items():
        now = store.latest(step)
        assert record is not None
        assert now is not None
        assert store.corruption(now, thorough=True) == {}
        assert now.content == record.content or step == "restore"
        told = {
            "dataset.json",
            "evaluation.json",
            "metrics",
            "ledger",
            "record",
        }  # these hold durations, or where the photos were
        assert [
            name for name in record.outputs if name not in told and now.outputs[name] != record.outputs[name]
        ] == []


def test_weights_that_came_out_otherwise_are_followed_to_the_end(place: Place) -> None:
    train_otherwise(place)
    report = train_cascade.run(place.recipe, str(place.root))
    reasons = {step.name: step.reason for step in report.steps if step.action == "RUN"}
    assert "input column was rebuilt with other content" in reasons["train-irm2"]  # what the runner found
    assert planned(place) == {}
    store = ArtifactStore(str(place.root))
    column, irm2, cascade = (store.latest(step) for step in ("condition-irm1", "train-irm2", "cascade"))
    assert column is not None
    assert irm2 is not None
    assert cascade is not None
    assert column.metadata["irm1"] == irm2.metadata["irm1"] == cascade.metadata["stages"]["irm1"]["digest"]
