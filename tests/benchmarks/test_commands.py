"""The commands that measure run through and print their tables; how long anything takes is asserted
nowhere. Those that import diffusers are imported by their tests: it takes seconds.
"""

from importlib import import_module
from pathlib import Path

import pytest

from tests.benchmarks import chain, loading, resizing, sharding, training
from tests.benchmarks.photos import make_photos


def _printed(
    module: object, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    monkeypatch.setattr("sys.argv", ["command", *words])
    module.main()  # type: ignore[attr-defined]
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_networks_sets_every_way_of_ours_against_diffusers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--stages",
        "irm1",
        "--shrink",
        "8",
        "--width",
        "8",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--trainer",
        "--peak-tflops",
        "1",
    ]
    lines = _printed(import_module("tests.benchmarks.networks"), words, capsys, monkeypatch)
    assert [line.split(":")[0] for line in lines if line.startswith("irm1")] == ["irm1 forward", "irm1 train"]
    assert (
        sum("TFLOP/s" in line for line in lines) == 2 * 2 + 2 * 3 + 1
    )  # layouts, diffusers with two kinds of Adam, trainer
    assert sum("% of the peak" in line for line in lines) == 11
    assert sum(" over ours" in line and "[" in line for line in lines) == 3


@pytest.mark.slow
def test_sampling_sets_fast_against_faithful_and_diffusers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--cascade", "paper", "--shrink", "8", "--width", "8", "--rounds", "1", "--thin", "1000"]
    lines = _printed(import_module("tests.benchmarks.sampling"), words, capsys, monkeypatch)
    assert [line.split()[0] for line in lines if "s a face" in line] == ["fast", "faithful", "diffusers"]
    assert [line.split(":")[0].strip() for line in lines if " over fast" in line] == [
        "faithful over fast",
        "diffusers over fast",
    ]


@pytest.mark.slow
def test_sharding_prints_the_same_content_id_for_this_process_and_makes_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "_WARM_UP_S", 0.0)
    photos = make_photos(tmp_path / "photos", 5, px=64)
    (photos / "broken.png").write_bytes(b"no picture")
    words = [
        str(photos),
        "--workers",
        "0",
        "0",
        "--hq-px",
        "32",
        "--lq-px",
        "8",
        "--shard-size",
        "2",
        "--few",
        "2",
    ]
    lines = _printed(sharding, words, capsys, monkeypatch)
    wide = lines[0].index("0 workers")
    values = {line[:wide].strip(): line[wide:].split("  ") for line in lines if line}
    table = {name: [cell.strip() for cell in cells if cell.strip()] for name, cells in values.items()}
    assert table["committed + quarantined"] == ["5 + 1", "5 + 1"]
    assert table["shards made again"] == ["0", "0"]
    assert len(set(table["content_id"])) == 1


def test_orchestration_is_what_the_many_take_more_than_the_few_beside_the_work() -> None:
    few = sharding.Spent(10, elapsed_s=5, decoding_s=1, reading_s=0.5, committing_s=0.1, driving_s=3, ray_s=1)
    many = sharding.Spent(
        110, elapsed_s=15, decoding_s=10, reading_s=1.3, committing_s=0.2, driving_s=3.05, ray_s=1.15
    )
    steady = many - few
    assert (steady.num_photos, steady.elapsed_s) == (100, 10)
    assert steady.working_s == pytest.approx(9.8)
    assert steady.beside_s == pytest.approx(0.3)
    assert steady.beside_alone(num_workers=1) == pytest.approx((0.15 + 0.015 * 9.95) / (9.95 + 0.015 * 9.95))


@pytest.mark.slow
def test_loading_sets_ours_against_webdataset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _printed(loading, ["--count", "8", "--rounds", "1"], capsys, monkeypatch)
    assert [line.split("  ")[0] for line in lines] == [
        *("LQ + hq128, IRM-1", "loader", "loader, 2 readers", "training", "webdataset"),
        *("hq512, TEM", "loader", "loader, 2 readers", "training", "webdataset"),
    ]


@pytest.mark.slow
def test_chain_loses_and_doubles_no_point_while_the_server_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "FACES", 2)
    lines = _printed(chain, ["--rounds", "1", "--posts", "20", "--outage-s", "0.5"], capsys, monkeypatch)
    assert [line.split(":")[0] for line in lines[:5]] == [
        "column",
        *("warming up", "no tracking", "a server that answers", "a server that is away"),
    ]
    assert lines[5].startswith("away for 0.5 s: ")
    assert lines[5].endswith(" points, 0 lost, 0 doubled")


@pytest.mark.slow
def test_training_tells_what_checkpoints_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _printed(
        training, ["--steps", "14", "--rounds", "1", "--only", "checkpoints"], capsys, monkeypatch
    )
    assert [line.split()[0] for line in lines[1:]] == ["checkpoints:"]


def test_a_photos_time_is_the_difference_between_many_and_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "make_photos", lambda folder, count: make_photos(folder, count, px=16))
    arms = {"ours": lambda photos, folder: 5 + 0.05 * len(list(photos.iterdir()))}
    arms["other"] = lambda photos, folder: 9 + 0.1 * len(list(photos.iterdir()))
    times = resizing.measure(arms, tmp_path, few=2, count=6, rounds=2)
    assert {name: [round(value, 6) for value in each] for name, each in times.items()} == {
        "ours": [50, 50],
        "other": [100, 100],
    }
    assert resizing.rows(times) == [("ours", "50.0", "1.00"), ("other", "100.0", "2.00")]
