"""The commands that measure run through and print their tables; how long anything takes is asserted nowhere."""

import pytest

from tests.benchmarks import networks, sampling


def _printed(module: object, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("sys.argv", ["command", *words])
    module.main()  # type: ignore[attr-defined]
    return capsys.readouterr().out.splitlines()


def test_networks_sets_every_way_of_ours_against_diffusers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--stages", "irm1", "--shrink", "8", "--width", "8", "--rounds", "1", "--threads", "1"]
    lines = _printed(networks, words, capsys, monkeypatch)
    assert [line.split(":")[0] for line in lines if line.startswith("irm1")] == ["irm1 forward", "irm1 train"]
    assert sum("TFLOP/s" in line for line in lines) == 2 * 4  # ours and diffusers, two layouts, forward and training
    assert sum(" over ours" in line and "[" in line for line in lines) == 2


def test_sampling_sets_fast_against_faithful_and_diffusers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--cascade", "paper", "--shrink", "8", "--width", "8", "--rounds", "1", "--thin", "1000"]
    lines = _printed(sampling, words, capsys, monkeypatch)
    assert [line.split()[0] for line in lines if "s a face" in line] == ["fast", "faithful", "diffusers"]
    assert [line.split(":")[0].strip() for line in lines if " over fast" in line] == ["faithful over fast", "diffusers over fast"]
