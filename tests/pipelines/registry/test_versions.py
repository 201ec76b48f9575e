import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.digests import model_digest
from diffbfr.errors import DiffBFRError, UsageError
from diffbfr.spec import to_dict
from diffbfr.stages import TEM_TINY
from pipelines.registry import fsck, get_version, list_versions, register_cascade, register_stage, resolve
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import Run
from tests.pipelines.registry.fixtures import CascadeMaker, StageMaker, cascade_folder, lineage


def test_registering_the_same_content_twice_is_one_version(run: Run, stage_folder: StageMaker) -> None:
    first = register_stage(run, "irm1", stage_folder("irm1", 1), lineage())
    second = register_stage(run, "irm1", stage_folder("irm1", 1), lineage())
    assert first == second
    assert [version.version for version in list_versions(run.registry)] == [1]


def test_a_version_carries_its_lineage_and_becomes_the_candidate(run: Run, stage_folder: StageMaker) -> None:
    version = register_stage(run, "tem", stage_folder("tem", 1), lineage(init="e" * 64))
    assert version.ref == "diffbfr-tem@1"
    assert version.aliases == ("candidate",)
    assert version.digest == model_digest(stage_folder("tem", 1), ("tem",))
    expected = {
        "data.content_id": "d" * 64,
        "recipe": "smoke",
        "artifact": "a" * 20,
        "code": "c" * 64,
        "parent.init": "e" * 64,
        "stage": "tem",
    }
    assert expected.items() <= version.tags.items()


def test_registered_files_are_a_copy_that_the_trainers_folder_cannot_change(
    run: Run, stage_folder: StageMaker, tmp_path: Path
) -> None:
    folder = stage_folder("irm1", 1)
    version = register_stage(run, "irm1", folder, lineage())
    (folder / "irm1.json").write_text("{}")
    from pipelines.registry.fetching import fetch

    assert model_digest(fetch(run.registry, version, tmp_path / "cache"), ("irm1",)) == version.digest


def test_a_cascade_names_its_three_stage_versions(make_cascade: CascadeMaker, registry: Registry) -> None:
    cascade = make_cascade(1)
    assert cascade.aliases == ("candidate",)
    for stage in ("irm1", "irm2", "tem"):
        assert cascade.tags[f"stage.{stage}"] == f"diffbfr-{stage}@1"
        assert cascade.tags[f"stage.{stage}.digest"] == get_version(registry, f"diffbfr-{stage}@1").digest
    assert make_cascade(1).version == 1
    assert make_cascade(2).version == 2
    assert get_version(registry, "diffbfr-cascade@candidate").version == 2


def test_weights_that_are_not_the_named_versions_make_no_cascade(
    run: Run, stage_folder: StageMaker, tmp_path: Path
) -> None:
    folders = {stage: stage_folder(stage, 1) for stage in ("irm1", "irm2", "tem")}
    versions = {stage: register_stage(run, stage, folder, lineage()) for stage, folder in folders.items()}  # type: ignore[arg-type]
    other = cascade_folder(tmp_path, {**folders, "tem": stage_folder("tem", 2)})
    with pytest.raises(UsageError, match="is not diffbfr-tem@1"):
        register_cascade(run, other, versions, lineage())  # type: ignore[arg-type]


def test_an_irm2_that_learnt_from_another_irm1_makes_no_cascade(
    run: Run, stage_folder: StageMaker, tmp_path: Path
) -> None:
    folders = {stage: stage_folder(stage, 1) for stage in ("irm1", "irm2", "tem")}
    irm1 = register_stage(run, "irm1", folders["irm1"], lineage())
    irm2 = register_stage(run, "irm2", folders["irm2"], lineage(irm1="f" * 64))
    tem = register_stage(run, "tem", folders["tem"], lineage())
    with pytest.raises(UsageError, match=r"diffbfr-irm2@1 learnt from irm1 ffffffffffff"):
        register_cascade(
            run, cascade_folder(tmp_path, folders), {"irm1": irm1, "irm2": irm2, "tem": tem}, lineage()
        )


def test_an_incompatible_triple_makes_no_cascade_and_the_field_is_named(
    run: Run, stage_folder: StageMaker, tmp_path: Path
) -> None:
    folders = {stage: stage_folder(stage, 1) for stage in ("irm1", "irm2", "tem")}
    (folders["tem"] / "tem.json").write_text(
        json.dumps(to_dict(replace(TEM_TINY, unet=replace(TEM_TINY.unet, image_px=256))))
    )
    versions = {stage: register_stage(run, stage, folder, lineage()) for stage, folder in folders.items()}  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="irm2 makes 128 px and tem works at 256 px; expected the same px"):
        register_cascade(run, cascade_folder(tmp_path, folders), versions, lineage())  # type: ignore[arg-type]
    assert list_versions(run.registry, "diffbfr-cascade") == ()


def test_a_half_uploaded_version_is_never_visible_and_the_next_attempt_makes_one(
    run: Run, stage_folder: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = run.registry.client
    whole = client.log_artifacts

    def half(run_id: str, folder: str, path: str) -> None:
        (Path(folder) / "irm1.safetensors").unlink()
        whole(run_id, folder, path)

    def lost(run_id: str, folder: str, path: str) -> None:
        half(run_id, folder, path)
        raise ConnectionError("killed")

    for fault, error in ((half, DiffBFRError), (lost, ConnectionError)):
        monkeypatch.setattr(client, "log_artifacts", fault)
        with pytest.raises(error):
            register_stage(run, "irm1", stage_folder("irm1", 1), lineage())
        assert list_versions(run.registry) == ()
    monkeypatch.setattr(client, "log_artifacts", whole)
    version = register_stage(run, "irm1", stage_folder("irm1", 1), lineage())
    assert (version.version, version.aliases) == (1, ("candidate",))
    assert fsck(run.registry) == ()


def test_concurrent_registrations_of_the_same_content_make_one_version(
    run: Run, stage_folder: StageMaker
) -> None:
    folder = stage_folder("irm1", 1)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: register_stage(run, "irm1", folder, lineage()), range(8)))
    assert {version.ref for version in made} == {"diffbfr-irm1@1"}
    assert len(list_versions(run.registry)) == 1


def test_a_cascade_version_keeps_no_path_of_the_machine_that_made_it(
    make_cascade: CascadeMaker, tmp_path: Path
) -> None:
    source = Path(make_cascade(1).source.removeprefix("file://"))
    texts = [path.read_bytes().decode(errors="replace") for path in source.rglob("*") if path.is_file()]
    assert any("pyfunc_model.py" in text for text in texts)
    assert not any(str(tmp_path) in text or "/pipelines/registry" in text for text in texts)


def test_resolve_finds_a_cascade_by_alias_number_and_folder(
    make_cascade: CascadeMaker, registry: Registry, tmp_path: Path
) -> None:
    cascade = make_cascade(1)
    for ref in ("diffbfr-cascade@candidate", "diffbfr-cascade@1"):
        found = resolve(ref, registry, tmp_path / "cache")
        assert (found.ref, found.digest) == ("diffbfr-cascade@1", cascade.digest)
        stages = [
            f"{stage}.{suffix}" for stage in ("irm1", "irm2", "tem") for suffix in ("json", "safetensors")
        ]
        assert sorted(path.name for path in found.folder.iterdir()) == ["cascade.json", *stages]
    assert resolve(str(tmp_path / "cascade-1"), registry, tmp_path / "cache").digest == cascade.digest


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("diffbfr-cascade@champion", "it has 1, candidate"),
        ("diffbfr-cascade@7", "it has 1, candidate"),
        ("diffbfr-irm1@candidate", "expected a cascade"),
        ("no/such/folder", "expected packaged.*, a folder, or diffbfr-cascade@champion"),
        ("diffbfr-cascade", "expected NAME@ALIAS or NAME@VERSION"),
    ],
)
def test_a_reference_to_nothing_is_refused_with_what_there_is(
    make_cascade: CascadeMaker, registry: Registry, tmp_path: Path, ref: str, message: str
) -> None:
    make_cascade(1)
    with pytest.raises(UsageError, match=message):
        resolve(ref, registry, tmp_path)


def test_resolve_refuses_files_that_changed_behind_the_registry(
    make_cascade: CascadeMaker, registry: Registry, tmp_path: Path
) -> None:
    cascade = make_cascade(1)
    stored = Path(cascade.source.removeprefix("file://")) / "artifacts" / "cascade" / "tem.safetensors"
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DiffBFRError, match="registered was"):
        resolve("diffbfr-cascade@1", registry, tmp_path)
