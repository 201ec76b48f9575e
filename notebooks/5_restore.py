# %% [markdown]
# # Restoring an archive, and reading its ledger
#
# An archive has good photos, copies of one another, and files that are no photos. A restoration gives every
# input exactly one row: what became of it, and why. The inputs here are aligned faces; `ARCHIVE` and
# `OPTIONS` are all that another kind of input changes.

# %%
import hashlib
import tempfile
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from diffbfr.cascade import packaged_cascade
from diffbfr.degradation import PRESETS, degrade, draw, sample_seed
from diffbfr.images import decode, resize
from diffbfr.synthetic import render_face
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.dataset.manifest import read_ledger
from pipelines.execution.model_ref import pin_model
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.flows.restore_page import write_restore_page

torch.set_num_threads(1)
work = Path(tempfile.mkdtemp(prefix="diffbfr-notebook-"))
OPTIONS = RestoreOptions(aligned=True, unit_size=4)

# %% [markdown]
# ## An archive
#
# Faces at 128 px, degraded by Eq. 13 and saved as JPEG, in folders of a zip.


# %%
def degraded_face(seed):
    spec = PRESETS["paper"].at(128)
    pixels = render_face(seed, px=128).pixels
    return degrade(pixels, draw(spec, sample_seed("archive", str(seed), 0)), spec)


photos = {f"album-{seed % 2}/{seed:02d}.jpg": degraded_face(seed) for seed in range(6)}
ARCHIVE = {
    **photos,
    "copies/again.jpg": photos["album-0/00.jpg"],
    "cut.jpg": photos["album-1/01.jpg"][:200],
    "letter.txt": b"not a photo",
}
EXPECTED = {"restored": 6, "duplicate": 1, "quarantined": 1, "skipped": 1}
with zipfile.ZipFile(work / "archive.zip", "w") as archive:
    for name, data in ARCHIVE.items():
        archive.writestr(name, data)

# %% [markdown]
# ## Restore it
#
# On a cluster the same call has another `ClusterConfig`, and both places may be `s3://`.

# %%
model = pin_model(packaged_cascade())


def restore():
    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        return restore_archive(str(work / "archive.zip"), str(work / "restored"), model, OPTIONS, cluster)


report = restore()
print(report.counts)

# %% [markdown]
# ## The ledger

# %%
rows = {row.name: row for row in read_ledger(report.ledger)}
for name, row in sorted(rows.items()):
    print(f"{name:18} {row.status:12} {row.output or row.reason:22} {row.duplicate_of or row.message[:60]}")

assert set(rows) == set(ARCHIVE), "one row for each input"
assert Counter(row.status for row in rows.values()) == EXPECTED
assert rows["copies/again.jpg"].duplicate_of == "album-0/00.jpg"
for row in rows.values():
    if row.output:
        written = (work / "restored" / row.output).read_bytes()
        assert hashlib.sha256(written).hexdigest() == row.output_sha256
        assert row.sha256 == hashlib.sha256(ARCHIVE[row.name]).hexdigest()

# %% [markdown]
# ## Before and after

# %%
shown = [row for row in rows.values() if row.status == "restored"][:4]
_, axes = plt.subplots(2, len(shown), figsize=(2.4 * len(shown), 5))
for column, row in enumerate(shown):
    before = resize(decode(ARCHIVE[row.name]).pixels, report.hq_px, "bilinear")
    after = Image.open(work / "restored" / row.output)
    for axis, picture in zip(axes[:, column], (before, after), strict=True):
        axis.imshow(picture)
        axis.axis("off")
    axes[0, column].set_title(row.name, fontsize=9)
    assert after.size == (report.hq_px, report.hq_px)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## The same command again
#
# Nothing is left to do, and nothing changes.

# %%
bytes_before = {path: path.read_bytes() for path in (work / "restored").rglob("*.png")}
again = restore()
assert again.num_worked == 0
assert again.counts == report.counts
assert {path: path.read_bytes() for path in (work / "restored").rglob("*.png")} == bytes_before

# %% [markdown]
# ## Where it came from
#
# Each output carries what made it: the digests of cascade and input, mode and seed, and that a model made it.

# %%
first = shown[0]
picture = Image.open(BytesIO((work / "restored" / first.output).read_bytes()))
packet = picture.info["XML:com.adobe.xmp"]
assert "compositeWithTrainedAlgorithmicMedia" in packet
assert first.model_digest in packet
assert first.sha256 in packet
print("report:", write_restore_page(report))
