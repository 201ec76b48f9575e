"""The sheet shows the pairs that a model sees, the low-quality face on the left."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.degradation import DegradationParams
from diffbfr.errors import UsageError
from diffbfr.images import decode, lq_to_model
from pipelines.dataset.contact_sheet import TILE_PX, caption, contact_sheet
from pipelines.dataset.manifest import open_dataset
from tests.pipelines.tiny_dataset import make_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("sheet"))


def _found(sheet: np.ndarray, pixels: np.ndarray) -> tuple[int, int]:
    """Where the tile of a picture lies in the sheet."""
    tile = np.array(Image.fromarray(pixels).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC))
    for top in range(sheet.shape[0] - TILE_PX + 1):
        for left in np.flatnonzero((sheet[top, : -TILE_PX or None] == tile[0, 0]).all(axis=1)).tolist():
            if (sheet[top : top + TILE_PX, left : left + TILE_PX] == tile).all():
                return top, left
    raise AssertionError("the tile is not in the sheet")


def test_each_low_quality_face_stands_left_of_its_own_ground_truth(root: Path) -> None:
    dataset = open_dataset(root)
    sheet = decode(contact_sheet(dataset, 6)).pixels
    places = []
    for place, (row, variant) in enumerate([(0, 0), (2, 1), (4, 0), (6, 1), (8, 0), (10, 1)]):
        key = dataset.samples[row].key
        lq = _found(sheet, lq_to_model(dataset.lq(key, variant), 32))
        assert _found(sheet, dataset.hq(key, variant)) == (lq[0], lq[1] + TILE_PX)
        places.append(lq)
        assert (lq[0] > places[0][0]) == (place >= 4)
    assert places == sorted(places)


def test_the_same_dataset_gives_the_same_sheet_and_no_more_pairs_than_there_are(root: Path) -> None:
    dataset = open_dataset(root)
    assert contact_sheet(dataset, 3) == contact_sheet(open_dataset(root), 3)
    one, all_of_them = (Image.open(io.BytesIO(contact_sheet(dataset, pairs))).size for pairs in (1, 99))
    assert all_of_them[0] > 3 * one[0]
    assert all_of_them[1] - one[1] == 5 * (one[1] - 40)  # 24 pairs in six rows below a title of 40 px
    with pytest.raises(UsageError, match="a sheet of 0 pairs"):
        contact_sheet(dataset, 0)


def test_a_caption_is_the_draw() -> None:
    params = DegradationParams(sigma=1.234, r=4.0, delta=12.34, q=71, gray=True, flip=True, noise_seed=1)
    assert caption(params) == "blur 1.23  r 4.0  noise 12.3  q 71  gray  flip"
