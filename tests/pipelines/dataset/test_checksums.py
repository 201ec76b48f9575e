"""The checksum list does not depend on shards, and the same photos give the same list on every machine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.degradation import PRESETS
from diffbfr.errors import UsageError
from pipelines.dataset.checksums import compare_lists, digest_list, list_checksums
from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.samples import ShardConfig
from pipelines.recipes.presets import paper
from tests.pipelines.tiny_dataset import build

ROOT = Path(__file__).parents[3]
PUBLISHED = "67eecadb3f114283d50b9edd02bbd913ff3bd1f0c6cd44cb5bc1a4991357ac1a"
CONFIG = ShardConfig(64, 16, 1, 250, 0.0, 1.0, 0, PRESETS["paper"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos in whole numbers, the same on every machine."""
    (tmp_path / "photos").mkdir()
    for number in range(8):
        y, x = np.mgrid[0:64, 0:80].astype(np.int64)
        stack = np.stack([3 * x + 11 * number, 4 * y, (x * y + 50 * number) // 20], axis=2) % 256
        Image.fromarray(stack.astype(np.uint8)).save(
            tmp_path / "photos" / f"{number}.bmp"
        )  # no codec, no versions
    return tmp_path / "photos"


def _list(photos: Path, root: Path, config: ShardConfig = CONFIG, variants: int = 1) -> str:
    build(photos, root, config)
    return list_checksums(open_dataset(root), "test", variants)


def test_the_published_list_is_reproduced(photos: Path, tmp_path: Path) -> None:
    """Frozen: whoever changes Eq. 13's bytes, the resize or the split sees it here."""
    assert digest_list(_list(photos, tmp_path / "data")) == PUBLISHED


@pytest.mark.slow
def test_the_list_that_the_repository_publishes_is_reproduced(tmp_path: Path) -> None:
    """By the command that docs/datasets.md names, in one process."""
    published = (ROOT / "docs" / "evaluation" / "procedural-512.txt").read_text()
    config = replace(paper().data.shard_config, val_fraction=0.0, test_fraction=1.0, variants=1)
    build("synthetic:count=50,seed=20,px=512", tmp_path / "data", config)
    assert compare_lists(published, list_checksums(open_dataset(tmp_path / "data"), "test", 1)) == []
    page = (ROOT / "docs" / "datasets.md").read_text()
    assert digest_list(published) in page
    assert (
        "--recipe paper --faces synthetic:count=50,seed=20,px=512 --set data.val_fraction=0 --set "
        "data.test_fraction=1" in page
    )


def test_shards_and_more_variants_do_not_change_the_list(photos: Path, tmp_path: Path) -> None:
    expected = _list(photos, tmp_path / "one")
    assert _list(photos, tmp_path / "two", replace(CONFIG, shard_size=3, variants=4)) == expected
    assert _list(photos, tmp_path / "three", replace(CONFIG, variants=4), variants=2).count("\n") == 18
    assert compare_lists(expected, expected) == []


def test_every_difference_is_named(photos: Path, tmp_path: Path) -> None:
    published = _list(photos, tmp_path / "one")
    (photos / "3.bmp").unlink()
    (photos / "9.bmp").write_bytes((photos / "4.bmp").read_bytes())
    other = _list(photos, tmp_path / "two")
    assert compare_lists(published, other) == ["3.0 is missing here", "9.0 is not in the published list"]
    degraded = _list(photos, tmp_path / "three", replace(CONFIG, degradation=PRESETS["gpen"]))
    assert all("the low-quality face is" in line for line in compare_lists(other, degraded))
    assert len(compare_lists(other, degraded)) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no faces"), ("# only a head\n", "has no faces"), ("abc def\n", "three checksums")],
)
def test_what_is_no_list_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare_lists(text, "")


def test_what_the_dataset_does_not_have_is_refused(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "data", CONFIG)
    dataset = open_dataset(tmp_path / "data")
    with pytest.raises(UsageError, match="2 variants were asked for, the dataset has 1"):
        list_checksums(dataset, "test", 2)
    with pytest.raises(UsageError, match="has no val samples"):
        list_checksums(dataset, "val", 1)
