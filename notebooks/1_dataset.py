# %% [markdown]
# # A dataset and its degradations
#
# Photos become shards: each face with several low-quality variants by Eq. 13, drawn in advance. The shards
# are plain WebDataset tars, so any program that reads those reads them. The faces are procedural: nothing
# is downloaded.

# %%
import hashlib
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import webdataset as wds
from PIL import Image

from diffbfr.degradation import PRESETS
from diffbfr.images import encode_png, resize
from diffbfr.synthetic import render_face
from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.samples import ShardConfig
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset, plan_shards, shard

work = Path(tempfile.mkdtemp(prefix="diffbfr-notebook-"))

# %% [markdown]
# ## Photos
#
# Twelve faces in a zip, and one file that is no photo. It will be refused with a reason; the others are not
# affected.

# %%
NUM_FACES = 12
photos = work / "photos.zip"
with zipfile.ZipFile(photos, "w") as archive:
    for seed in range(NUM_FACES):
        archive.writestr(f"{seed:02d}.png", encode_png(render_face(seed, px=128).pixels))
    archive.writestr("broken.png", b"not a photo")

# %% [markdown]
# ## Shards
#
# A task makes one shard of every column. Here they run one after another; on a cluster each is a Ray task.

# %%
config = ShardConfig(
    hq_px=128,
    lq_px=32,
    variants=3,
    shard_size=5,
    val_fraction=0.0,
    test_fraction=0.25,
    seed=0,
    degradation=PRESETS["paper"],
)


def make(root: Path):
    tasks = plan_shards(open_source(str(photos)), config, str(root))
    for task in tasks:
        shard(task)
    return finish_dataset(str(root), tasks)


info = make(work / "dataset")
dataset = open_dataset(work / "dataset")
folders = sorted(path.name for path in (work / "dataset").iterdir() if list(path.glob("*.tar")))
print(
    f"{len(dataset)} faces in {len(dataset.shards)} shards, columns {folders}, {info.num_quarantined} refused"
)
assert len(dataset) == NUM_FACES
assert info.num_quarantined == 1
assert len(dataset.keys("train")) + len(dataset.keys("test")) == NUM_FACES

# %% [markdown]
# ## One face, three degradations
#
# Blur, down-sampling, noise and JPEG, each with its own parameters. They depend on the content of the photo
# and the number of the variant alone.

# %%
key = dataset.keys("train")[0]
sample = dataset.sample(key)
_, axes = plt.subplots(1, 1 + config.variants, figsize=(11, 3.2))
axes[0].imshow(dataset.hq(key, variant=0))
axes[0].set_title("ground truth")
for variant, axis in enumerate(axes[1:]):
    lq, params = dataset.lq(key, variant), sample.variants[variant]
    axis.imshow(resize(lq, config.hq_px, "bilinear"))
    axis.set_title(
        f"sigma {params.sigma:.1f}  r {params.r:.1f}\ndelta {params.delta:.0f}  q {params.q}", fontsize=9
    )
for axis in axes:
    axis.axis("off")
plt.tight_layout()
plt.show()

small, large = PRESETS["paper"].at(config.hq_px).r
for it in dataset.samples:
    assert all(small <= variant.r <= large for variant in it.variants)

# %% [markdown]
# ## Read by webdataset alone
#
# No code of this project: the tars in their folder, and the names of their members.

# %%
tars = sorted(str(path) for path in (work / "dataset" / "lq").glob("*.tar"))
read = {}
for record in wds.WebDataset(tars, shardshuffle=False):
    jpegs = [record[f"{variant}.jpg"] for variant in range(config.variants)]
    read[record["__key__"]] = [np.asarray(Image.open(BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs]

assert set(read) == {it.key for it in dataset.samples}
for variant in range(config.variants):
    assert np.array_equal(read[key][variant], dataset.lq(key, variant))
print(f"webdataset reads the same {len(read) * config.variants} pictures")

# %% [markdown]
# ## The same bytes again
#
# A shard is a function of the recipe and its photos: another attempt writes the same tar, bit for bit.

# %%
again = make(work / "again")


def digests(root: Path):
    return {
        path.relative_to(root): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.tar")
    }


assert digests(work / "dataset") == digests(work / "again")
assert info.content_id == again.content_id
print(f"{len(digests(work / 'again'))} tars are equal; content {info.content_id[:16]}")
