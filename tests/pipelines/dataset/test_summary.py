"""The figures of a dataset are those of its samples and files."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.summary import NUM_BINS, histogram, summarize
from tests.pipelines.tiny_dataset import make_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("summary"))


def test_every_value_falls_into_one_bin() -> None:
    values = np.array([0.0, 0.1, 0.5, 0.5, 2.4])
    found = histogram("x", "px", values)
    assert len(found.edges) == NUM_BINS + 1
    assert (found.edges[0], found.edges[-1]) == (0.0, 2.4)
    assert sum(found.counts) == 5
    assert found.mean == pytest.approx(0.7)
    assert found.counts[5] == 2


def test_bars_are_as_high_as_their_counts_and_a_single_value_shows() -> None:
    bars = histogram("x", "", np.array([0.0] * 80 + [1.0] * 40 + [2.0])).bars()
    assert (len(bars), bars[0], bars[12], bars[-1]) == (NUM_BINS, "█", "▄", "▁")
    assert set(bars[1:12]) == {" "}
    assert histogram("x", "", np.array([3.0])).bars().strip() == "█"


def test_sizes_and_draws_are_those_of_the_files_and_rows(root: Path) -> None:
    dataset = open_dataset(root)
    summary = summarize(dataset)
    for size in summary.columns:
        lengths = [
            len(dataset.read(s.key, size.column, name))
            for s in dataset.samples
            for name in dataset.column(size.column).names
        ]
        assert (size.num_bytes, size.smallest, size.largest) == (sum(lengths), min(lengths), max(lengths))
    draws = [params for sample in dataset.samples for params in sample.variants]
    by_name = {found.name: found for found in summary.histograms}
    assert list(by_name) == ["sigma", "r", "delta", "q", "lq file"]
    for name in ("sigma", "r", "delta", "q"):
        values = [getattr(params, name) for params in draws]
        assert sum(by_name[name].counts) == 24
        assert by_name[name].mean == pytest.approx(np.mean(values))
        assert (by_name[name].edges[0], by_name[name].edges[-1]) == (min(values), max(values))
    assert summary.flipped == sum(params.flip for params in draws) / 24
    assert summary.gray == sum(params.gray for params in draws) / 24


def test_figures_need_no_picture(root: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(root, tmp_path / "data"))
    for tar in copied.rglob("*.tar"):
        tar.unlink()
    assert summarize(open_dataset(copied)) == summarize(open_dataset(root))
