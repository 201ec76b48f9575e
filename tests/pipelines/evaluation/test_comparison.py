"""Two evaluations are compared only if card, pictures, sizes and metrics are the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.metrics import frechet, psnr, ssim
from diffbfr.metrics.cards import FFHQ_HOLDOUT, PAPER
from pipelines.evaluation.comparison import compare, format_comparison
from pipelines.evaluation.pair_scores import (
    EvaluatedData,
    PairScores,
    format_scores,
    pair_lines,
    read_pair_scores,
    write_pair_scores,
)
from pipelines.evaluation.set_scores import SetScore

INFOS = {"psnr": psnr.INFO, "ssim": ssim.INFO, "fid": frechet.FID}


def scores(shift: float = 0.0, count: int = 30, name: str = "a") -> PairScores:
    keys = tuple(f"{number:02}" for number in range(count))
    noise = np.random.default_rng(0).normal(size=(2, count))
    rows = {"psnr": tuple((25 + noise[0] + shift).tolist()), "ssim": tuple((0.7 + noise[1] / 50).tolist())}
    sets = {"fid": SetScore(20.0 - shift)}
    return PairScores(
        card=FFHQ_HOLDOUT,
        data=EvaluatedData(name, "hq", None, count, "0", 64, 64, True, "the references"),
        lines=pair_lines(INFOS, {}, keys, rows, sets),
        weights={"fid": "1" * 64},
        versions={"diffbfr": "0.1.0"},
        seconds={"psnr": 0.01},
        keys=keys,
        rows=rows,
    )


def test_a_shift_is_found_and_equal_values_are_no_difference() -> None:
    found = {metric.key: metric for metric in compare(scores(), scores(0.5)).metrics}
    shifted, same, whole = found["psnr"].test, found["ssim"].test, found["fid"]
    assert shifted is not None
    assert same is not None
    assert abs(shifted.difference.mean - 0.5) < 1e-9
    assert shifted.p_value < 0.001
    assert (same.difference.mean, same.p_value) == (0, 1)
    assert (whole.first, whole.second, whole.test) == (20.0, 19.5, None)
    text = format_comparison(compare(scores(), scores(0.5, name="b")))
    assert "+0.5 [+0.5, +0.5]" in text
    assert "A is a, B is b; card ffhq-holdout v1" in text


def test_what_differs_in_more_than_the_method_is_refused() -> None:
    first = scores()
    others = [
        (replace(first, card=PAPER), "figures of different cards cannot be compared"),
        (replace(first, card=replace(FFHQ_HOLDOUT, version="2")), "ffhq-holdout v1 .* and ffhq-holdout v2"),
        (scores(count=29), "1 pictures are in one evaluation only, the first is 29"),
        (replace(first, data=replace(first.data, width=128)), "the pictures are 64 x 64 and 128 x 64"),
        (replace(first, weights={"fid": "2" * 64}), "FID was measured in two ways"),
        (replace(first, lines=first.lines[:0]), "share no metric"),
    ]
    for other, message in others:
        with pytest.raises(UsageError, match=message):
            compare(first, other)


def test_a_metric_that_is_missing_or_infinite_is_no_comparison() -> None:
    first = scores()
    lines = pair_lines(INFOS, {"ssim": "no reason"}, first.keys, first.rows, {"fid": SetScore(1.0)})
    compared = compare(first, replace(first, lines=lines))
    assert [metric.key for metric in compared.metrics] == ["psnr", "fid"]
    perfect = dict(first.rows) | {"psnr": (float("inf"), *first.rows["psnr"][1:])}
    with pytest.raises(UsageError, match="a difference is infinite"):
        compare(first, replace(first, rows=perfect))


def test_a_metric_that_is_undefined_for_a_picture_has_no_mean() -> None:
    rows = {"psnr": (1.0, float("nan"), 3.0)}
    (line,) = pair_lines({"psnr": psnr.INFO}, {}, ("a", "b", "c"), rows, {})
    assert line.value is None
    assert line.unavailable == "undefined for 1 of 3 pictures, the first is b"


def test_a_result_is_read_as_it_was_written_also_with_an_infinite_psnr(tmp_path: Path) -> None:
    first = scores()
    rows = dict(first.rows) | {"psnr": (float("inf"), *first.rows["psnr"][1:])}
    missing = {"ssim": "run diffbfr setup metrics"}
    written = replace(
        first, rows=rows, lines=pair_lines(INFOS, missing, first.keys, rows, {"fid": SetScore(1.0, 0.1, "n")})
    )
    write_pair_scores(written, str(tmp_path))
    assert read_pair_scores(str(tmp_path)) == written
    text = format_scores(written)
    assert "SSIM       ↑  unavailable: run diffbfr setup metrics" in text
    assert "FID        ↓  1.000 +- 0.100 (n)" in text


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("scores.json", b"{}", "holds no readable evaluation"),
        ("scores.json", b"[", "scores.json is damaged"),
        ("rows.csv", b"key,psnr\n00,x\n", "holds no readable evaluation"),
    ],
)
def test_a_damaged_result_is_one_line(place: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_pair_scores(scores(), str(tmp_path))
    (tmp_path / place).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_pair_scores(str(tmp_path))


def test_a_card_that_was_edited_is_noticed(tmp_path: Path) -> None:
    write_pair_scores(scores(), str(tmp_path))
    place = tmp_path / "scores.json"
    place.write_text(place.read_text().replace('"version": "1",\n  "data"', '"version": "9",\n  "data"', 1))
    with pytest.raises(UsageError, match="its card was changed; evaluate again"):
        read_pair_scores(str(tmp_path))
