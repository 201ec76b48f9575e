import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.registry import fsck, get_version
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import step_run
from tests.pipelines.registry.fixtures import CascadeMaker


def test_a_sound_registry_has_no_findings(make_cascade: CascadeMaker, registry: Registry) -> None:
    make_cascade(1)
    assert fsck(registry) == ()


def test_fsck_finds_a_dangling_source_and_changed_bytes(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    make_cascade(1)
    tem, irm1 = (
        Path(get_version(registry, f"diffbfr-{stage}@1").source.removeprefix("file://"))
        for stage in ("tem", "irm1")
    )
    (tem / "tem.safetensors").unlink()
    (irm1 / "irm1.json").write_text("changed")
    assert {finding.ref for finding in fsck(registry)} == {"diffbfr-tem@1", "diffbfr-irm1@1"}


def test_fsck_finds_a_cascade_that_lost_a_stage_and_an_alias_to_nothing(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    make_cascade(1)
    registry.client.delete_model_version("diffbfr-irm2", "1")
    findings = {finding.ref: finding.problem for finding in fsck(registry)}
    assert "irm2 diffbfr-irm2@1 is gone" in findings["diffbfr-cascade@1"]


def _files(registry: Registry, ref: str) -> Path:
    return Path(get_version(registry, ref).source.removeprefix("file://"))


def dangling_source(registry: Registry) -> None:
    shutil.rmtree(_files(registry, "diffbfr-tem@1"))


def digest_mismatch(registry: Registry) -> None:
    weights = _files(registry, "diffbfr-irm1@1") / "irm1.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def alias_to_a_deleted_version(registry: Registry) -> None:
    """MLflow deletes the aliases of a version with it; a restored backup may have such an alias."""
    with closing(sqlite3.connect(registry.uri.removeprefix("sqlite:///"))) as database, database:
        database.execute("UPDATE registered_model_aliases SET version = 7 WHERE name = 'diffbfr-cascade'")


def missing_stage(registry: Registry) -> None:
    registry.client.delete_model_version("diffbfr-irm2", "1")


def orphan(registry: Registry) -> None:
    with step_run(registry, "register", "b" * 20) as killed:
        killed.log_tags({"diffbfr.uploads": "yes", "diffbfr.uploads.abc": "models/abc"})
        killed.log_bytes("models/abc/irm1.safetensors", b"half")


def changed_signature(registry: Registry) -> None:
    model = _files(registry, "diffbfr-cascade@1") / "MLmodel"
    model.write_text(model.read_text().replace('"type": "string"', '"type": "binary"'))


def changed_code(registry: Registry) -> None:
    code = _files(registry, "diffbfr-cascade@1") / "pyfunc_model.py"
    code.write_text(code.read_text() + "import os\n")


@pytest.mark.parametrize(
    ("inject", "ref", "problem"),
    [
        (dangling_source, "diffbfr-tem@1", "cannot read"),
        (digest_mismatch, "diffbfr-irm1@1", "has digest"),
        (alias_to_a_deleted_version, "diffbfr-cascade@candidate", "the alias names version 7, which is gone"),
        (missing_stage, "diffbfr-cascade@1", "its irm2 diffbfr-irm2@1 is gone"),
        (orphan, "run ", "it holds models/abc, which no version names"),
        (changed_signature, "diffbfr-cascade@1", "its signature changed"),
        (changed_code, "diffbfr-cascade@1", "its code changed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fsck_finds_each_fault_and_nothing_else(
    make_cascade: CascadeMaker, registry: Registry, inject: Callable[[Registry], None], ref: str, problem: str
) -> None:
    make_cascade(1)
    inject(registry)
    findings = [
        finding
        for finding in fsck(registry)
        if not (inject is missing_stage and finding.ref.startswith("run "))
    ]
    assert len(findings) == 1
    assert findings[0].ref.startswith(ref)
    assert problem in findings[0].problem


def test_the_command_prints_a_line_a_finding_and_fails(
    make_cascade: CascadeMaker,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cascade(1)
    Path(get_version(registry, "diffbfr-tem@1").source.removeprefix("file://"), "tem.safetensors").unlink()
    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", "fsck", "--root", str(tmp_path / "root")])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    assert ended.value.code == 4
    assert out.count("\n") == 1
    assert out.startswith("diffbfr-tem@1: ")
    assert error.startswith("diffbfr: 1 findings in the registry")
