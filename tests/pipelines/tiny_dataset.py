"""A small dataset of smooth random pictures, for tests that look at datasets and do not make them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from diffbfr.degradation import PRESETS
from diffbfr.images import encode_png
from diffbfr.shards import DatasetInfo
from pipelines.dataset.samples import ShardConfig
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset, plan_shards, shard

CONFIG = ShardConfig(
    hq_px=32,
    lq_px=8,
    variants=2,
    shard_size=5,
    val_fraction=0.15,
    test_fraction=0.15,
    seed=3,
    degradation=PRESETS["paper"],
)


def picture(seed: int, width: int = 40, height: int = 40) -> bytes:
    """A smooth random picture as PNG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return encode_png(np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)))


def make_photos(folder: Path, count: int = 12) -> Path:
    """Good photos in the layout of FFHQ."""
    for number in range(count):
        place = folder / f"{number // 5 * 1000:05d}" / f"{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    return folder


def build(
    photos: Path | str, root: Path | str, config: ShardConfig = CONFIG, max_bad: int | None = None
) -> DatasetInfo:
    """Make a dataset in this process."""
    tasks = plan_shards(open_source(photos), config, str(root))
    for task in tasks:
        shard(task)
    return finish_dataset(str(root), tasks, max_bad)


def make_dataset(folder: Path, **changes: object) -> Path:
    """Twelve faces in three shards, one photo refused; `changes` are fields of the configuration."""
    photos = make_photos(folder / "photos")
    (photos / "broken.png").write_bytes(b"no picture")
    build(photos, folder / "data", replace(CONFIG, **changes))  # type: ignore[arg-type]
    return folder / "data"
