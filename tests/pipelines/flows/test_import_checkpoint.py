"""A public checkpoint becomes a registered stage, and its licence goes wherever its weights go."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from diffbfr.cascade import RECORD, Cascade
from diffbfr.checkpoint import file_sha256
from diffbfr.digests import model_digest
from diffbfr.errors import UsageError
from diffbfr.importing import checkpoints
from diffbfr.importing.checkpoints import PUBLIC, open_checkpoint
from diffbfr.origin import read_origin
from pipelines import registry as models
from pipelines.cli import main
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.execution.model_ref import pin_model
from pipelines.flows import train_cascade
from pipelines.flows.assemble_cascade import AssembledCascade, assemble_cascade
from pipelines.flows.import_checkpoint import ImportReport, import_checkpoint, settings_of
from pipelines.flows.lineage import trace
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.recipes.overrides import change, load
from pipelines.recipes.recipe import Recipe
from pipelines.tracking.connection import Registry, open_registry
from tests.diffbfr.importing.small_checkpoints import SMALL, write_checkpoint
from tests.pipelines.flows.pocket import pocket
from tests.pipelines.sample_archive import encode, face

STAGES = {"irm1": "sr3", "irm2": "sr3", "tem": "difface"}
SR3 = "SR3 16 -> 128 px: Apache-2.0; trained on FFHQ (CC BY-NC-SA 4.0, non-commercial)"


@dataclass(frozen=True)
class Imported:
    files: Path
    root: str
    registry: Registry
    reports: Mapping[str, ImportReport]
    cascade: AssembledCascade


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    """The three small checkpoints imported, and a cascade of them."""
    files, root = tmp_path_factory.mktemp("files"), str(tmp_path_factory.mktemp("root"))
    registry = open_registry(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "PUBLIC", SMALL)
        reports = {}
        for stage, family in STAGES.items():
            file = write_checkpoint(files / f"{stage}.pth", stage)
            reports[stage] = import_checkpoint(open_checkpoint(file, family), registry, root)  # type: ignore[arg-type]
        names = {stage: f"diffbfr-{stage}@candidate" for stage in STAGES}
        yield Imported(files, root, registry, reports, assemble_cascade(names, registry, root))  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_import_is_a_registered_stage_whose_record_has_source_digest_and_licence(
    imported: Imported,
) -> None:
    report = imported.reports["tem"]
    version = models.get_version(imported.registry, report.model)
    record = ArtifactStore(imported.root).latest("import-tem")
    assert record is not None
    file = imported.files / "tem.pth"
    sha256 = file_sha256(file)
    for values, prefix in ((record.metadata, ""), (version.tags, "origin.")):
        assert values[f"{prefix}source"] == "DifFace FFHQ 512 px"
        assert values[f"{prefix}file"] == "tem.pth"
        assert values[f"{prefix}sha256"] == sha256
    assert version.tags["licence"].startswith("S-Lab License 1.0, non-commercial")
    assert "FFHQ" in version.tags["licence.terms"]
    assert version.digest == report.digest == model_digest(Path(report.folder), ("tem",))
    assert read_origin(Path(report.folder) / "tem.safetensors") == report.origin
    again = import_checkpoint(open_checkpoint(file, "difface"), imported.registry, imported.root)
    assert again == report


@pytest.mark.slow
def test_the_chain_of_an_assembled_cascade_leads_to_the_files(imported: Imported) -> None:
    chain = trace(imported.registry, ArtifactStore(imported.root), imported.cascade.model)
    assert [it.title for it in chain.all() if it.problems] == []
    assert {f"file {stage}.pth" for stage in STAGES} <= {it.title for it in chain.all()}
    assert models.fsck(imported.registry) == ()
    store = ArtifactStore(imported.root)
    assert models.collect_garbage(imported.registry, store.root, store.referenced_ids(), plan=True) == ()


@pytest.mark.slow
def test_a_cascade_and_its_outputs_name_every_licence(imported: Imported, tmp_path: Path) -> None:
    record = json.loads((Path(imported.cascade.folder) / RECORD).read_text())
    assert {stage: it["file"] for stage, it in record["origins"].items()} == {
        stage: f"{stage}.pth" for stage in STAGES
    }
    tags = models.get_version(imported.registry, imported.cascade.model).tags
    assert tags["licence.irm1"] == SR3
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode(face(0, 48), "PNG"))
    ref = pin_model(imported.cascade.folder)
    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        report = restore_archive(
            str(tmp_path / "in"), str(tmp_path / "out"), ref, RestoreOptions(aligned=True), cluster
        )
    assert report.counts.restored == 1
    assert json.loads((tmp_path / "out" / "restore.json").read_text())["licences"] == list(ref.licences)
    assert ref.licences == imported.cascade.licences
    picture = (tmp_path / "out" / "a.png").read_bytes().decode("latin1")
    assert 'diffbfr:ModelLicences="SR3 16 -&gt; 128 px: Apache-2.0;' in picture
    assert "DifFace FFHQ 512 px: S-Lab License 1.0, non-commercial" in picture


def recipe_from(imported: Imported, init: str) -> Recipe:
    """The pocket recipe with IRM-1 of the import; the other stages start from nothing."""
    recipe, stage = pocket(), SMALL[0].stage
    training = replace(recipe.irm1.training, num_samples=8)
    return replace(
        recipe,
        data=replace(recipe.data, lq_px=16),
        irm1=replace(recipe.irm1, stage=stage, training=training, init=init),
        irm2=replace(recipe.irm2, training=training),
        tem=replace(recipe.tem, training=training),
    )


@pytest.mark.slow
def test_a_stage_trained_from_an_import_and_its_cascade_keep_the_licence(imported: Imported) -> None:
    """By NAME@ALIAS or by folder it is the same training."""
    report = train_cascade.run(recipe_from(imported, "diffbfr-irm1@1"), imported.root, until="evaluate")
    store = ArtifactStore(imported.root)
    trained, cascade = store.latest("train-irm1"), store.latest("cascade")
    assert trained is not None
    assert cascade is not None
    assert trained.identity.inputs["init"] == imported.reports["irm1"].digest
    weights = Path(store.artifact_dir(trained.identity)) / "irm1.safetensors"
    assert read_origin(weights) == imported.reports["irm1"].origin
    assert list(cascade.metadata["origins"]) == ["irm1"]
    evaluated = store.latest("evaluate")
    assert evaluated is not None
    assert evaluated.metadata["licences"] == [SR3]
    again = train_cascade.run(
        recipe_from(imported, imported.reports["irm1"].folder), imported.root, until="evaluate"
    )
    assert {step.action for step in report.steps} == {"RUN"}
    assert {step.action for step in again.steps} == {"HIT"}


@pytest.mark.slow
def test_a_cascade_whose_irm2_sees_its_input_is_trained_and_restores(tmp_path: Path) -> None:
    recipe = change(pocket(num_samples=8), {"irm2.training.condition": "both"})
    assert recipe.irm2.stage.unet.in_channels == 9
    train_cascade.run(recipe, str(tmp_path / "root"))
    cascade = ArtifactStore(str(tmp_path / "root")).latest("cascade")
    assert cascade is not None
    assert pin_model(ArtifactStore(str(tmp_path / "root")).artifact_dir(cascade.identity)).lq_px == 32
    (mirror,) = (tmp_path / "root" / "artifacts" / "restore").glob("*/*/ledger.parquet")
    assert mirror.is_file()


@pytest.mark.slow
def test_an_own_stage_and_imported_ones_make_a_cascade(imported: Imported, tmp_path: Path) -> None:
    """A stage from a folder is registered with the cascade; sizes that do not fit are refused."""
    own = tmp_path / "own"
    shutil.copytree(imported.reports["tem"].folder, own)
    spec = json.loads((own / "tem.json").read_text())
    (own / "tem.json").write_text(json.dumps(spec | {"start": 50}))
    names = {"irm1": "diffbfr-irm1@1", "irm2": imported.cascade.folder, "tem": str(own)}
    made = assemble_cascade(names, imported.registry, imported.root)  # type: ignore[arg-type]
    assert made.stages == {"irm1": "diffbfr-irm1@1", "irm2": "diffbfr-irm2@1", "tem": "diffbfr-tem@2"}
    for wrong, line in (
        ("packaged", "irm2 makes 128 px and tem works at 32 px"),
        ("diffbfr-tem@1", "diffbfr-tem@1 holds tem; expected irm2, or a cascade; name another --irm2"),
        (str(tmp_path / "none"), "no irm2 at .*none; expected packaged.*, NAME@ALIAS"),
    ):
        with pytest.raises(UsageError, match=line):
            assemble_cascade({**names, "irm2": wrong}, imported.registry, imported.root)  # type: ignore[arg-type]


@pytest.mark.slow
def test_few_evaluations_change_the_sampling_and_not_the_weights(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    names = dict.fromkeys(STAGES, "packaged")
    registry = open_registry(root)
    plain, few, again = (
        assemble_cascade(names, registry, root, few=it)  # type: ignore[arg-type]
        for it in (False, True, True)
    )
    assert (few.digest, few.model) == (again.digest, again.model)
    assert few.digest != plain.digest
    cascade = Cascade.load(Path(few.folder))
    stages = (cascade.irm1, cascade.irm2, cascade.tem)
    assert [stage.spec.fast.num_evaluations for stage in stages] == [4, 2, 2]
    assert not any(stage.spec.distilled for stage in stages)  # so that mode faithful stays
    for stage in STAGES:
        weights = [(Path(it.folder) / f"{stage}.safetensors").read_bytes() for it in (plain, few)]
        assert weights[0] == weights[1]


def test_the_settings_of_further_training_make_the_imported_network() -> None:
    for known in PUBLIC:
        name = known.stage.name
        settings = settings_of(known.stage)
        assert load("paper", overrides=settings).stage(name).stage.trained == known.stage.trained
        assert bool(settings) == (name != "irm1")


def test_the_condition_of_irm2_brings_its_channels() -> None:
    both = change(pocket(), {"irm2.training.condition": "both"})
    assert both.irm2.stage.sees_input
    assert change(both, {"irm2.training.condition": "sampled"}) == pocket()
    with pytest.raises(UsageError, match=r"condition=both with unet\.in_channels=6"):
        change(pocket(), {"irm2.training.condition": "both", "irm2.stage.unet.in_channels": 6})


def test_a_stage_has_the_recipes_initial_weights_unless_it_has_its_own() -> None:
    recipe = change(pocket(), {"init": "packaged", "irm1.init": "scratch", "tem.init": "diffbfr-tem@3"})
    assert [recipe.init_of(name) for name in (None, "irm1", "irm2", "tem")] == [  # type: ignore[arg-type]
        "packaged",
        "scratch",
        "packaged",
        "diffbfr-tem@3",
    ]


@pytest.mark.parametrize(("stage", "family"), STAGES.items())
def test_without_the_licence_accepted_nothing_is_written(
    stage: str,
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checkpoints, "PUBLIC", SMALL)
    file, root = write_checkpoint(tmp_path / "file.pth", stage), tmp_path / "root"
    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", "import", family, str(file), "--root", str(root)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, line = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert line.count("\n") == 1
    assert "CC BY-NC-SA 4.0" in line
    assert "Expected --accept-licence" in line
    assert not root.exists()
