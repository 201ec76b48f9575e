"""The outputs of any method are measured as the metrics measure them, once, and on one page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffbfr.errors import UsageError
from diffbfr.images import decode, to_tensor
from diffbfr.metrics.cards import FFHQ_HOLDOUT, PAPER
from diffbfr.metrics.frechet import MomentAccumulator, to_npz
from diffbfr.metrics.lpips import Lpips
from diffbfr.metrics.psnr import psnr
from pipelines.cluster import Cluster
from pipelines.evaluation import pair_task
from pipelines.evaluation.pair_scores import read_pair_scores
from pipelines.flows.evaluate_pairs import PairRequest, evaluate_pairs, reference_source, result_folder
from pipelines.packages.weights import find_weights
from tests.pipelines.evaluation.faces import make_folders
from tests.pipelines.evaluation.random_weights import write_random_weights

METRICS = (
    "psnr",
    "ssim_y",
    "lpips_alex",
    "identity_cosine",
    "identity_degree",
    "consistency",
    "frechet_dlib",
)


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_weights(tmp_path / "cache")
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    for variable in ("DIFFBFR_SQUEEZENET", "DIFFBFR_IDENTITY", "DIFFBFR_FACE_DETECTOR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def request_of(tmp_path: Path) -> PairRequest:
    make_folders(tmp_path)
    return PairRequest(
        str(tmp_path / "bilinear"),
        str(tmp_path / "reference"),
        FFHQ_HOLDOUT,
        METRICS,
        str(tmp_path / "lq"),
        allow_few=True,
    )


def test_the_figures_are_those_of_the_metrics(
    request_of: PairRequest, tmp_path: Path, serial: Cluster
) -> None:
    report = evaluate_pairs(request_of, str(tmp_path / "out"), serial)
    scores = report.scores
    assert scores.keys == tuple(f"face{seed}" for seed in range(5))
    pictures = [
        [decode((tmp_path / side / f"{key}.png").read_bytes()).pixels for key in scores.keys]
        for side in ("bilinear", "reference")
    ]
    levels = [torch.from_numpy(np.stack(side)) for side in pictures]
    np.testing.assert_allclose(scores.rows["psnr"], psnr(*levels), rtol=1e-12)
    weights_file = find_weights("lpips-alex")
    assert weights_file is not None
    wanted = Lpips("alex", weights_file)(*map(to_tensor, pictures))
    np.testing.assert_allclose(scores.rows["lpips_alex"], wanted, rtol=1e-5)
    cosine = np.array(scores.rows["identity_cosine"])
    np.testing.assert_allclose(
        scores.rows["identity_degree"], np.degrees(np.arccos(cosine.clip(-1, 1))), atol=1e-6
    )
    line = scores.line("frechet_dlib")
    assert line is not None
    assert line.value is not None
    assert line.value > 0
    assert min(scores.rows["consistency"]) > 30
    assert scores.data.follows_card
    assert read_pair_scores(report.folder) == scores
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "rows.csv",
        "scores.json",
    ]


def test_the_page_shows_the_worst_and_the_best_face_and_escapes_names(
    request_of: PairRequest, tmp_path: Path, serial: Cluster
) -> None:
    for side in ("bilinear", "reference", "lq"):
        (tmp_path / side / "face0.png").rename(tmp_path / side / "<b>0.png")
    report = evaluate_pairs(request_of, str(tmp_path / "out"), serial)
    page = Path(report.page).read_text()
    values = report.scores.rows["lpips_alex"]
    order = sorted(range(5), key=lambda number: -values[number])
    worst = page.index("The worst faces, by LPIPS (Alex)")
    best = page.index("The best faces, by LPIPS (Alex)")
    assert f"LPIPS (Alex) {values[order[0]]:.3f}" in page[worst:best]
    assert f"LPIPS (Alex) {values[order[-1]]:.3f}" in page[best:]
    assert page.count("data:image/png") == 2 * 4 * 3
    assert "<b>0" not in page
    assert "&lt;b&gt;0" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_metric_without_weights_is_unavailable_and_says_what_to_do(
    request_of: PairRequest, tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "none"))
    report = evaluate_pairs(
        replace(request_of, metrics=FFHQ_HOLDOUT.metrics, lq=None), str(tmp_path / "out"), serial
    )
    reasons = {line.key: line.unavailable for line in report.scores.lines}
    assert {key for key, reason in reasons.items() if not reason} == {"psnr", "psnr_y", "ssim", "ssim_y"}
    for key in ("lpips_alex", "lpips_vgg", "niqe", "identity_cosine", "fid", "kid", "frechet_dlib"):
        assert reasons[key] == "run diffbfr setup metrics"
    assert reasons["squeezenet_distance"] == "set DIFFBFR_SQUEEZENET to its weights"
    assert reasons["landmark_distance"] == "run diffbfr setup faces"
    assert reasons["consistency"] == "give the inputs with --lq"


def test_pictures_that_are_too_small_for_a_metric_leave_it_out(
    request_of: PairRequest, tmp_path: Path, serial: Cluster
) -> None:
    (tmp_path / "cache" / "weights" / "niqe-pristine.safetensors").write_bytes(b"")
    (tmp_path / "cache" / "weights" / "niqe-pristine.json").write_text("{}")
    report = evaluate_pairs(replace(request_of, metrics=("psnr", "niqe")), str(tmp_path / "out"), serial)
    line = report.scores.line("niqe")
    assert line is not None
    assert line.unavailable == "pictures of 64 px, it needs 192"


def test_an_interrupted_evaluation_measures_only_what_is_missing(
    request_of: PairRequest, tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.flows.evaluate_pairs.PAIRS_PER_TASK", 2)
    whole = evaluate_pairs(request_of, str(tmp_path / "whole"), serial).scores
    read = []
    original = pair_task.read_picture

    def stops(source: object, ref: object) -> object:
        read.append(ref.name)  # type: ignore[attr-defined]
        if len(read) == 10:
            raise KeyboardInterrupt
        return original(source, ref)  # type: ignore[arg-type]

    monkeypatch.setattr(pair_task, "read_picture", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate_pairs(request_of, str(tmp_path / "out"), serial)
    assert len(list((tmp_path / "out" / "parts").rglob("*.npz"))) == 1
    read[:] = ["again"] * 10
    again = evaluate_pairs(request_of, str(tmp_path / "out"), serial).scores
    assert len(read) == 10 + 3 * 3  # the two last tasks, of two and one pairs, with three pictures each
    assert again.rows == whole.rows
    assert not (tmp_path / "out" / "parts").exists()


def test_changed_pictures_and_other_weights_are_measured_again(
    request_of: PairRequest, tmp_path: Path, serial: Cluster
) -> None:
    first = evaluate_pairs(request_of, str(tmp_path / "out"), serial).scores
    face = tmp_path / "bilinear" / "face0.png"
    Image.open(face).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(face)
    second = evaluate_pairs(request_of, str(tmp_path / "out"), serial).scores
    assert first.rows["psnr"][0] != second.rows["psnr"][0]
    assert first.rows["psnr"][1:] == second.rows["psnr"][1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"card": PAPER}, "face0.png of .*reference is 64 x 64; card paper wants 512 x 512"),
        (
            {"card": replace(PAPER, px=64), "allow_few": False},
            "5 pairs; card paper wants 3000; give its data",
        ),
        (
            {"allow_few": False},
            "5 pictures are too few for the covariance of frechet-dlib, which wants 129; give more, print "
            "it with --allow-few, or leave it out with --metrics",
        ),
        ({"statistics": "absent.npz"}, "no file absent.npz; expected statistics as .npz"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_line_before_anything_is_measured(
    change: dict[str, object], message: str, request_of: PairRequest, tmp_path: Path, serial: Cluster
) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_pairs(replace(request_of, **change), str(tmp_path / "out"), serial)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_picture_of_another_size_is_named(request_of: PairRequest, tmp_path: Path, serial: Cluster) -> None:
    face = tmp_path / "bilinear" / "face3.png"
    Image.open(face).resize((32, 64)).save(face)
    with pytest.raises(UsageError, match=r"face3.png of .*bilinear is 32 x 64; expected 64 x 64"):
        evaluate_pairs(request_of, str(tmp_path / "out"), serial)


def statistics(tmp_path: Path, source: str, width: int = 2048, count: int = 3) -> str:
    moments = MomentAccumulator(width)
    moments.add(np.eye(count, width))
    place = tmp_path / "statistics.npz"
    place.write_bytes(to_npz(moments.statistics("inception-2015-12-05", source)))
    return str(place)


def test_statistics_of_other_pictures_or_of_too_few_are_refused(
    request_of: PairRequest, tmp_path: Path, serial: Cluster
) -> None:
    given = replace(request_of, metrics=("psnr",), statistics=statistics(tmp_path, "others"))
    with pytest.raises(UsageError, match=r"is not of the pictures of .*card ffhq-holdout takes FID against"):
        evaluate_pairs(given, str(tmp_path / "out"), serial)
    own = statistics(tmp_path, reference_source([f"face{seed}" for seed in range(5)]))
    report = evaluate_pairs(replace(given, statistics=own), str(tmp_path / "out"), serial)
    assert report.scores.data.statistics.startswith("given statistics of 3 pictures, sha256 ")
    elsewhere = replace(FFHQ_HOLDOUT, fid_reference="ffhq-70k", fid_reference_count=70_000)
    with pytest.raises(UsageError, match="is of 3 pictures; card ffhq-holdout wants 70000 of ffhq-70k"):
        evaluate_pairs(replace(given, card=elsewhere, allow_few=False), str(tmp_path / "out"), serial)


def test_one_request_has_one_folder_and_another_another(request_of: PairRequest, tmp_path: Path) -> None:
    root = str(tmp_path / "runs")
    assert result_folder(request_of, root) == result_folder(request_of, root)
    other = replace(request_of, restored=str(tmp_path / "bicubic"))
    assert result_folder(request_of, root) != result_folder(other, root)


def test_an_output_carries_card_versions_and_weights(
    request_of: PairRequest, tmp_path: Path, serial: Cluster
) -> None:
    evaluate_pairs(request_of, str(tmp_path / "out"), serial)
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert stored["card"]["name"] == "ffhq-holdout"
    assert stored["card_digest"] == FFHQ_HOLDOUT.digest
    assert {"diffbfr", "python", "torch", "numpy", "pillow"} == stored["versions"].keys()
    assert {"lpips_alex", "identity_cosine", "identity_degree", "frechet_dlib"} == stored["weights"].keys()


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_give_the_same_rows(
    request_of: PairRequest,
    tmp_path: Path,
    serial: Cluster,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.flows.evaluate_pairs.PAIRS_PER_TASK", 2)
    alone = evaluate_pairs(replace(request_of, metrics=("psnr", "ssim")), str(tmp_path / "a"), serial).scores
    spread = evaluate_pairs(
        replace(request_of, metrics=("psnr", "ssim")), str(tmp_path / "b"), cluster
    ).scores
    assert alone.rows == spread.rows
