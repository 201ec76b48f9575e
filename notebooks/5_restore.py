# %% [markdown]
# # Restoring an archive of whole photos, and reading its tables
#
# An archive has good photos of none to many faces, copies of one another, and files that are no photos. A
# restoration finds the faces, restores those that are worth it, pastes them back, and gives every input
# exactly one row in `ledger.parquet`, and every face one in `faces.parquet`.

# %%
import hashlib
import io
import tempfile
import zipfile
from collections import Counter
from math import degrees
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from diffbfr.cascade import packaged_cascade
from diffbfr.faces import photo as faces_of_photos
from diffbfr.faces.align import FRAME_POINTS, Frame, fit_frame
from diffbfr.faces.detect import Face, as_points
from diffbfr.faces.paste import RestoredFace, paste, touched
from diffbfr.faces.similarity import Similarity, fit_similarity
from diffbfr.synthetic import render_face
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.dataset.manifest import read_ledger
from pipelines.execution.model_ref import pin_model
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.flows.restore_page import write_restore_page
from pipelines.restoration import whole_input
from pipelines.restoration.face_rows import read_faces
from pipelines.restoration.request import PhotoSettings
from pipelines.sources.weights_ref import pin_weights

torch.set_num_threads(1)
work = Path(tempfile.mkdtemp(prefix="diffbfr-notebook-"))

# %% [markdown]
# ## An archive
#
# Procedural faces in scenes, each where `PLACES` says: left and top of its frame, its size in pixels, and
# how far it is turned. Every face wears five coloured markers, on the eyes, the nose and the corners of the
# mouth.

# %%
MARKERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))
PLACES = {
    "trip/three.png": [(20, 30, 70, 0), (130, 20, 80, 25), (230, 40, 64, -80)],
    "trip/gray.png": [(30, 20, 76, 0)],
    "photo.jpg": [(110, 40, 80, 10), (20, 20, 30, 0)],  # the second is too small
    "view.jpg": [],
}


def place_of(left, top, px, turn):
    """From the pixels of a face's frame (512 px) to the scene's."""
    middle = Similarity.of_shift(-255.5, -255.5).then(Similarity(px / 512, 0.0, 0.0, 0.0))
    return middle.then(Similarity.of_turn(turn)).then(Similarity.of_shift(left + px / 2, top + px / 2))


def scene(seed, places, height=140, width=320):
    rough = np.random.default_rng(seed).uniform(90, 170, (4, 8, 1)).astype(np.float32)
    gray = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    picture = (gray[..., None] * (1.0, 0.95, 0.88)).astype(np.uint8)
    for number, place in enumerate(places):
        face = RestoredFace(Frame(place_of(*place)), render_face(seed=10 * seed + number, px=128).pixels)
        picture = paste(picture, [face])
    for place in places:
        for (x, y), colour in zip(place_of(*place)(FRAME_POINTS), MARKERS, strict=True):
            centre, radius = (round(float(x) * 16), round(float(y) * 16)), round(place[2] * 0.035 * 16)
            cv2.circle(picture, centre, radius, colour, -1, cv2.LINE_AA, 4)
    return picture


def encoded(picture, file_format, **options):
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, file_format, **options)
    return stored.getvalue()


scenes = {name: scene(seed, places) for seed, (name, places) in enumerate(PLACES.items())}
POSITION = Image.Exif()
POSITION[0x0132] = "2001:02:03 04:05:06"
POSITION.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 0.0)})
ARCHIVE = {
    "trip/three.png": encoded(scenes["trip/three.png"], "PNG"),
    "trip/gray.png": encoded(scenes["trip/gray.png"].mean(2).round().astype(np.uint8), "PNG"),
    "photo.jpg": encoded(scenes["photo.jpg"], "JPEG", quality=95, subsampling=0, exif=POSITION),
    "view.jpg": encoded(scenes["view.jpg"], "JPEG", quality=80),
}
ARCHIVE["copies/again.jpg"] = ARCHIVE["photo.jpg"]
ARCHIVE["cut.jpg"] = ARCHIVE["photo.jpg"][:900]
ARCHIVE["letter.txt"] = b"not a photo"
with zipfile.ZipFile(work / "archive.zip", "w") as archive:
    for name, data in ARCHIVE.items():
        archive.writestr(name, data)

# %% [markdown]
# ## A detector
#
# `diffbfr setup faces` fetches a network that finds faces. Here a detector of thirty lines finds the markers,
# so that nothing is fetched; like a network it sees upright heads only. The search turns the photo, looks
# again, and merges what was found twice. A photo is usually decoded in a process of its own, which would not
# know this detector, so it is decoded here.


# %%
class MarkerDetector:
    """Finds upright faces by their markers."""

    name = "markers"
    min_score = 0.6
    sizes = (4.0, 200.0)

    def detect(self, pixels, min_score=None):
        spots = [self.spots(pixels, colour) for colour in MARKERS]
        if any(len(found) == 0 for found in spots):
            return []
        faces = []
        for eye in spots[0]:
            points = np.array([eye, *(found[np.hypot(*(found - eye).T).argmin()] for found in spots[1:])])
            turn = abs(degrees(fit_similarity(FRAME_POINTS, points).angle))
            score = 0.95 - turn / 200
            if turn < 50 and score >= (min_score or self.min_score):
                margin = 0.5 * np.hypot(*(points[1] - points[0]))
                (left, top), (right, bottom) = points.min(0) - margin, points.max(0) + margin
                faces.append(Face((left, top, right, bottom), as_points(points), score))
        return sorted(faces, key=lambda face: -face.score)

    def spots(self, pixels, colour):
        near = (np.abs(pixels.astype(int) - colour).max(2) < 80).astype(np.uint8)
        return cv2.connectedComponentsWithStats(near)[3][1:]


def run_here(function, *arguments, **_):
    return function(*arguments)


faces_of_photos.load_detector = lambda weights: MarkerDetector()
whole_input.run_sandboxed = run_here
(work / "markers.onnx").write_bytes(b"what would be the weights of a detector")
detector = pin_weights(work / "markers.onnx")
OPTIONS = RestoreOptions(aligned=False, unit_size=4, photos=PhotoSettings(detector.sha256), detector=detector)

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
# ## The ledger: a row for each input

# %%
rows = {row.name: row for row in read_ledger(report.ledger)}
for name, row in sorted(rows.items()):
    print(
        f"{name:18} {row.status:12} {row.num_faces} faces  {row.output or row.reason:18} {row.message[:50]}"
    )

assert set(rows) == set(ARCHIVE), "one row for each input"
EXPECTED = {"restored": 2, "no_face": 2, "duplicate": 1, "quarantined": 1, "skipped": 1}
assert Counter(row.status for row in rows.values()) == EXPECTED
assert rows["photo.jpg"].duplicate_of == "copies/again.jpg", "the first of the listing is restored"
for row in rows.values():
    if row.output:
        written = (work / "restored" / row.output).read_bytes()
        assert hashlib.sha256(written).hexdigest() == row.output_sha256
        assert row.sha256 == hashlib.sha256(ARCHIVE[row.name]).hexdigest()
        assert (written == ARCHIVE[row.name]) == (row.status == "no_face"), "without a face, a copy"

# %% [markdown]
# ## The faces: a row for each, and a verdict
#
# The search places the points of every face where the scene has them, however it is turned. The gray photo
# has a face and no coloured markers, so this detector finds none there.

# %%
faces = read_faces(report.output)
for face in faces:
    measured = "" if face.consistency is None else f"{face.consistency:.1f} dB"
    print(f"{face.photo:16} {face.verdict:10} {face.eyes_px:4.1f} px between the eyes  {measured}")

assert Counter(face.photo for face in faces) == {"trip/three.png": 3, "copies/again.jpg": 2}
verdicts = [face.verdict for face in sorted(faces, key=lambda face: face.eyes_px)]
assert verdicts == ["too_small", "chosen", "chosen", "chosen", "chosen"]
for face in faces:
    points = np.reshape(face.points, (5, 2))
    truth = [place_of(*place)(FRAME_POINTS) for place in PLACES[face.photo.replace("copies/again", "photo")]]
    off = min(float(np.abs(points - true).max()) for true in truth)
    assert off < 1.5, "pixels"
    assert (face.status == "restored") == (face.verdict == "chosen")
    assert face.low_confidence == (face.consistency is not None and face.consistency < 20)

# %% [markdown]
# ## Before and after
#
# Only pixels inside the masks of the restored faces may differ.

# %%
before = scenes["trip/three.png"]
after = np.asarray(Image.open(work / "restored" / "trip/three.png"))
frames = [fit_frame(np.reshape(face.points, (5, 2))) for face in faces if face.photo == "trip/three.png"]
mask = touched(*before.shape[:2], frames)
changed = (before != after).any(2)
assert after.shape == before.shape
assert not changed[~mask].any()
assert changed[mask].mean() > 0.5

_, axes = plt.subplots(3, 1, figsize=(7, 9))
for axis, (title, picture) in zip(
    axes, {"before": before, "after": after, "changed": changed}.items(), strict=True
):
    axis.imshow(picture, cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## The same command again
#
# Nothing is left to do, and nothing changes.

# %%
outputs = [work / "restored" / row.output for row in rows.values() if row.output]
bytes_before = {path: path.read_bytes() for path in outputs}
again = restore()
assert again.num_worked == 0
assert again.counts == report.counts
assert {path: path.read_bytes() for path in outputs} == bytes_before

# %% [markdown]
# ## Where it came from
#
# Each restored photo carries what made it: the digests of cascade and input, mode and seed, and that a model
# made it. The date stays, the position does not, and a JPEG keeps its quantisation tables.

# %%
first = rows["copies/again.jpg"]
picture = Image.open(work / "restored" / first.output)
packet = picture.info["xmp"].decode()
assert "compositeWithTrainedAlgorithmicMedia" in packet
assert first.model_digest in packet
assert first.sha256 in packet
assert picture.getexif()[0x0132] == "2001:02:03 04:05:06"
assert not picture.getexif().get_ifd(0x8825)
assert picture.quantization == Image.open(io.BytesIO(ARCHIVE["photo.jpg"])).quantization
print("report:", write_restore_page(report))
