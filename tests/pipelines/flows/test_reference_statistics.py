"""The statistics of a set are those of its pictures' features, and an interrupted command goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffbfr.errors import UsageError
from diffbfr.images import decode, to_tensor
from diffbfr.metrics.cards import FFHQ_HOLDOUT
from diffbfr.metrics.frechet import from_npz
from diffbfr.metrics.inception import Inception, InceptionFeatures
from pipelines.cluster import Cluster
from pipelines.flows import reference_statistics
from pipelines.flows.evaluate_pairs import reference_source
from tests.pipelines.evaluation.faces import make_folders


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    place = tmp_path / "cache" / "weights" / "inception-2015-12-05.safetensors"
    place.parent.mkdir(parents=True)
    save_file(Inception().state_dict(), place)
    place.with_suffix(".json").write_text("{}")
    return place


@pytest.mark.slow
def test_statistics_are_those_of_all_features(
    weights: Path, tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_statistics, "PICTURES_PER_TASK", 2)
    make_folders(tmp_path, 3)
    place = tmp_path / "out.npz"
    made = reference_statistics.make_statistics(str(tmp_path / "reference"), FFHQ_HOLDOUT, str(place), serial)
    network = InceptionFeatures(weights)
    pictures = [decode((tmp_path / "reference" / f"face{i}.png").read_bytes()).pixels for i in range(3)]
    features = np.concatenate([network(to_tensor(picture)).numpy() for picture in pictures]).astype(
        np.float64
    )
    read = from_npz(place.read_bytes(), "out.npz")
    np.testing.assert_allclose(read.mean, features.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(read.covariance, np.cov(features, rowvar=False), rtol=0, atol=1e-9)
    assert (made.count, read.source) == (3, reference_source(["face0", "face1", "face2"]))
    assert not Path(f"{place}.parts").exists()


def test_pictures_of_another_size_than_the_card_are_named(
    weights: Path, tmp_path: Path, serial: Cluster
) -> None:
    make_folders(tmp_path, 1)
    with pytest.raises(UsageError, match=r"face0\.png of .* is 64 x 64; the card wants 32 x 32"):
        reference_statistics.make_statistics(
            str(tmp_path / "reference"), replace(FFHQ_HOLDOUT, px=32), str(tmp_path / "out.npz"), serial
        )


def test_without_weights_the_command_says_what_to_do(
    tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "none"))
    with pytest.raises(
        UsageError, match="Inception is not installed; expected its weights; run diffbfr setup"
    ):
        reference_statistics.make_statistics(str(tmp_path), FFHQ_HOLDOUT, str(tmp_path / "o.npz"), serial)
