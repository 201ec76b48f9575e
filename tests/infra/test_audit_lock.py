"""The audit names the known vulnerabilities of pinned versions, and stops nothing where there is no data."""

from pathlib import Path
from typing import Any

import pytest

from infra import audit_lock
from infra.audit_lock import LOCK, audit, main, pins

_DATA: dict[str, Any] = {
    "sound": {"vulnerabilities": []},
    "holed": {
        "vulnerabilities": [
            {"id": "PYSEC-1", "aliases": ["CVE-2099-1"], "fixed_in": ["2.0"], "withdrawn": None},
            {"id": "PYSEC-2", "aliases": [], "fixed_in": [], "withdrawn": "2099-01-01"},
        ]
    },
}


def test_every_package_of_the_lock_is_asked_about() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if "==" in line and not line.startswith("#")]
    assert len(pins(LOCK.read_text())) == len(lines) > 50
    assert pins("torch==2.13.0+cpu\n# a comment\n") == [("torch", "2.13.0")]


def test_known_vulnerabilities_are_named_and_withdrawn_ones_are_not() -> None:
    found = audit(
        [("sound", "1.0"), ("holed", "1.0"), ("unknown", "1.0")], lambda name, version: _DATA.get(name)
    )
    assert found == ("holed 1.0: PYSEC-1, CVE-2099-1; mended in 2.0",)


@pytest.mark.parametrize("answer", [None, {}, {"info": {}}])
def test_an_index_without_the_data_is_one_line_and_no_failure(
    answer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit_lock, "fetch", lambda name, version: answer)
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("audit: skipped, ")


def test_a_vulnerable_lock_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("holed==1.0\n")
    monkeypatch.setattr(audit_lock, "fetch", lambda name, version: _DATA[name])
    assert main([str(lock)]) == 1
    assert "CVE-2099-1" in capsys.readouterr().out
