import math
from pathlib import Path

import numpy as np
import pytest

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.images import decode, encode_png
from diffbfr.metrics import psnr, ssim
from pipelines.evaluation.scores import (
    Evaluation,
    aggregate,
    format_table,
    means,
    read_evaluation,
    write_evaluation,
)
from pipelines.evaluation.types import EvaluateReport, EvaluateTask, Panel, Row
from pipelines.execution.model_ref import ModelRef

METRICS = (psnr.INFO, ssim.INFO)


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, size=(32, 32, 3), dtype=np.uint8))


def report(index: int, keys: tuple[str, ...], seeds: tuple[int, ...] = (0, 1)) -> EvaluateReport:
    """Scores that are easy to average by hand: TEM has 20 + key number + draw dB."""
    rows = []
    for key in keys:
        number = float(key[1:])
        rows.append(Row(key, "lq", None, (18 + number, 0.5)))
        for seed in seeds:
            rows += [
                Row(key, subject, seed, (20 + number + seed, 0.6)) for subject in ("irm1", "irm2", "tem")
            ]  # type: ignore[arg-type]
    panels = tuple(Panel(key, *(picture(i) for i in range(5))) for key in keys[:1])
    return EvaluateReport(index, METRICS, tuple(rows), panels, seconds=1.0)


def task(index: int, keys: tuple[str, ...]) -> EvaluateTask:
    return EvaluateTask(
        index, "dataset", ModelRef("cascade", "d" * 64, 8, 32), keys, seeds=(0, 1), panels=keys[:1]
    )


@pytest.fixture
def evaluation() -> Evaluation:
    tasks = [task(0, ("k0", "k1")), task(1, ("k2", "k3"))]
    return aggregate(
        tasks, [report(1, ("k2", "k3")), report(0, ("k0", "k1"))], content_id="c" * 20, split="test", hq_px=32
    )


def test_draws_are_averaged_before_images(evaluation: Evaluation) -> None:
    tem = evaluation.interval("tem", "PSNR")
    assert tem.mean == pytest.approx(20 + 1.5 + 0.5)
    assert tem.count == 4
    assert evaluation.interval("lq", "PSNR").mean == pytest.approx(19.5)


def test_reports_in_any_order_give_one_evaluation(evaluation: Evaluation) -> None:
    tasks = [task(0, ("k0", "k1")), task(1, ("k2", "k3"))]
    other = aggregate(
        tasks, [report(0, ("k0", "k1")), report(1, ("k2", "k3"))], content_id="c" * 20, split="test", hq_px=32
    )
    assert other == evaluation


def test_a_missing_face_is_an_error_and_not_a_smaller_mean() -> None:
    with pytest.raises(IncompleteError, match="1 of 3 faces"):
        aggregate(
            [task(0, ("k0", "k1", "k2"))], [report(0, ("k0", "k1"))], content_id="c", split="test", hq_px=32
        )


def test_what_is_written_is_read_back_whole(evaluation: Evaluation, tmp_path: Path) -> None:
    names = write_evaluation(evaluation, tmp_path)
    assert read_evaluation(tmp_path) == evaluation
    assert (
        sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
        == names
    )


def test_writing_twice_gives_the_same_bytes(evaluation: Evaluation, tmp_path: Path) -> None:
    names = write_evaluation(evaluation, tmp_path / "a")
    write_evaluation(evaluation, tmp_path / "b")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_an_infinite_psnr_survives_the_round_trip(tmp_path: Path) -> None:
    rows = tuple(
        Row("k0", subject, None if subject == "lq" else 0, (math.inf, 1.0))
        for subject in ("lq", "irm1", "irm2", "tem")
    )
    perfect = aggregate(
        [task(0, ("k0",))],
        [EvaluateReport(0, METRICS, rows, (), 1.0)],
        content_id="c",
        split="test",
        hq_px=32,
    )
    write_evaluation(perfect, tmp_path)
    assert read_evaluation(tmp_path).interval("tem", "PSNR").mean == math.inf
    assert "Infinity" not in (tmp_path / "evaluation.json").read_text()


def test_the_protocol_digest_moves_with_what_was_measured_and_not_with_the_result(
    evaluation: Evaluation,
) -> None:
    tasks = [task(0, ("k0", "k1"))]
    fewer = aggregate(tasks, [report(0, ("k0", "k1"))], content_id="c" * 20, split="test", hq_px=32)
    elsewhere = aggregate(tasks, [report(0, ("k0", "k1"))], content_id="d" * 20, split="test", hq_px=32)
    better_rows = tuple(
        Row(r.key, r.subject, r.seed, (r.values[0] + 1, r.values[1])) for r in report(0, ("k0", "k1")).rows
    )
    better = aggregate(
        tasks, [EvaluateReport(0, METRICS, better_rows, (), 1.0)], content_id="c" * 20, split="test", hq_px=32
    )
    assert len({evaluation.protocol.digest, fewer.protocol.digest, elsewhere.protocol.digest}) == 3
    assert better.protocol.digest == fewer.protocol.digest


def test_the_printed_table_names_every_subject_and_carries_the_protocol(evaluation: Evaluation) -> None:
    text = format_table(evaluation)
    for word in (
        "LQ",
        "IRM-1",
        "IRM-2",
        "TEM",
        "PSNR (dB) ↑",
        psnr.INFO.protocol,
        ssim.INFO.protocol,
        evaluation.protocol.digest,
        "4 faces",
    ):
        assert word in text
    assert "22.00 [" in text


def test_means_are_named_for_trackers(evaluation: Evaluation) -> None:
    assert means(evaluation)["tem.psnr"] == pytest.approx(22.0)
    assert set(means(evaluation)) == {
        f"{s}.{m}" for s in ("lq", "irm1", "irm2", "tem") for m in ("psnr", "ssim")
    }


def test_a_metric_nobody_measured_is_refused_by_name(evaluation: Evaluation) -> None:
    with pytest.raises(UsageError, match="PSNR, SSIM"):
        evaluation.interval("tem", "squeezenet distance")


def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="diffbfr evaluate"):
        read_evaluation(tmp_path)


def test_the_strip_shows_every_picture_under_its_title(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(evaluation, tmp_path)
    sheet = decode((tmp_path / "panels.png").read_bytes()).pixels
    assert sheet.shape == (34 + 2 * 200, 5 * 200 + 8, 3)
    assert (sheet[:34] != 255).any()
    assert (sheet[34:226, 8:200] != 255).any()
