"""Whole photos of 0 to 8 known faces each: what is found of them, and what an archive of them costs.

    python -m tests.benchmarks.archive find [--weights FILE] [--faces FOLDER] [--count 2000]
    python -m tests.benchmarks.archive restore [--faces FOLDER] [--count 2000] [--out FOLDER] [--stand-in]
    python -m tests.benchmarks.archive stages [--weights FILE] [--faces FOLDER] [--count 40]

The faces are 24 to 512 px wide (of the FFHQ frame), upright or turned by any angle, and one in ten reaches
over the border. FOLDER holds pictures of 512 px aligned to the FFHQ frame; without one the faces are
procedural. `find` prints recall, error of the points (in eye distances) and false finds by size and by angle.
`restore` restores an archive of them with the packaged cascade, or with a stand-in that enlarges, prints the
same of the faces in its table, has the output audited, and counts its rows and the pixels changed outside of
the masks. What is in its FOLDER stays, and a run that was ended goes on there. `stages` prints the processor
time of each stage.
"""

import argparse
import functools
import io
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

os.environ |= {"OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffbfr.faces.align import FRAME_EYES_PX, FRAME_PX, align, fit_frame
from diffbfr.faces.detect import Face, FaceDetector, as_points
from diffbfr.faces.paste import RestoredFace, paste, touched
from diffbfr.faces.search import FaceSearch
from diffbfr.faces.weights import load_detector
from diffbfr.images.photo import read_photo
from pipelines.cli.output import table
from pipelines.flows.setup_faces import detector_weights
from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.photo_output import encode_photo
from tests.benchmarks.faces import _is_at, read_faces
from tests.diffbfr.faces.scenes import Placed, background, compose
from tests.pipelines.auditor import audit
from tests.pipelines.fake_cascade import FakeModel

Pixels = NDArray[np.uint8]
T = TypeVar("T")

SIZES: Final = (24, 32, 48, 96, 192, 512)
"""Edges of the classes of size: the side of the frame in pixels of the photo."""
TURNS: Final = (0, 30, 60, 90, 135, 180)
"""Edges of the classes of turn, in degrees to either side."""
NUM_BACKGROUNDS: Final = 40
MOST_PX: Final = 900


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo to be drawn: its size, its background, and the faces in it."""

    seed: int
    width: int
    height: int
    placed: tuple[Placed, ...]

    def draw(self) -> Pixels:
        """Its pixels."""
        ground = _background(self.seed % NUM_BACKGROUNDS)
        return compose(ground[: self.height, : self.width], self.placed)


@functools.cache
def _background(seed: int) -> Pixels:
    return background(MOST_PX, MOST_PX, seed)


def scenes(faces: Sequence[Pixels], count: int) -> Iterator[Scene]:
    """Photos of 500 to 900 px whose faces do not cover each other."""
    for seed in range(count):
        generator = np.random.default_rng(seed)
        width, height = (int(side) for side in generator.integers(500, MOST_PX, 2))
        placed: list[Placed] = []
        for _ in range(int(generator.integers(0, 9))):
            face = _place(generator, faces[int(generator.integers(len(faces)))], width, height)
            far = (
                np.hypot(face.x - other.x, face.y - other.y) > 2 * (face.eyes_px + other.eyes_px)
                for other in placed
            )
            if all(far):
                placed.append(face)
        yield Scene(seed, width, height, tuple(placed))


def _place(generator: np.random.Generator, face: Pixels, width: int, height: int) -> Placed:
    frame_px = float(np.exp(generator.uniform(np.log(SIZES[0]), np.log(SIZES[-1]))))
    eyes_px = frame_px * FRAME_EYES_PX / FRAME_PX
    turn = generator.uniform(-180, 180) if generator.random() < 0.5 else generator.uniform(-15, 15)
    margin = -0.6 * eyes_px if generator.random() < 0.1 else 2.2 * eyes_px
    margin = min(margin, width / 2 - 1, height / 2 - 1)
    x = generator.uniform(margin, width - margin)
    y = generator.uniform(margin, height - margin)
    return Placed(face, x, y, eyes_px, turn)


def _class(value: float, edges: Sequence[int]) -> str:
    for low, high in pairwise(edges):
        if low <= value <= high:
            return f"{low} to {high}"
    return f"over {edges[-1]}"


class Tally:
    """Recall and points' error by class of size, of turn, and at the border; false finds in all."""

    def __init__(self) -> None:
        self._total: Counter[str] = Counter()
        self._hits: Counter[str] = Counter()
        self._errors: defaultdict[str, list[float]] = defaultdict(list)
        self._false = 0

    def add(self, scene: Scene, found: Sequence[Face]) -> None:
        """Compare what was found in a scene with what is in it."""
        finds = list(found)
        for truth in scene.placed:
            classes = _classes(truth, scene)
            hit = next((face for face in finds if _is_at(face, truth)), None)
            self._total.update(classes)
            if hit is None:
                continue
            finds.remove(hit)
            self._hits.update(classes)
            off = np.linalg.norm(hit.points_array - truth.points, axis=1).mean() / truth.eyes_px
            for name in classes:
                self._errors[name].append(float(off))
        self._false += len(finds)

    def rows(self) -> list[tuple[str, ...]]:
        """The table."""
        found = sum(self._hits[name] for name in ("all inside", "over the border"))
        rows = [
            (
                name,
                f"{self._hits[name]} of {self._total[name]}",
                f"{self._hits[name] / self._total[name]:.1%}",
                f"{np.mean(self._errors[name]):.3f}",
            )
            for name in sorted(self._total)
        ]
        all_finds = found + self._false
        return [*rows, ("precision", f"{found} of {all_finds}", f"{found / all_finds:.2%}", "")]


def _classes(face: Placed, scene: Scene) -> list[str]:
    points = face.points
    if not ((points >= 0) & (points < (scene.width, scene.height))).all():
        return ["over the border"]
    size = _class(face.eyes_px * FRAME_PX / FRAME_EYES_PX, SIZES)
    return ["all inside", f"frame {size} px", f"turned {_class(abs(face.turn), TURNS)}"]


def find(finder: FaceDetector, faces: Sequence[Pixels], count: int) -> list[tuple[str, ...]]:
    """What the detector alone finds."""
    tally, started = Tally(), time.process_time()
    for number, scene in enumerate(scenes(faces, count), start=1):
        tally.add(scene, finder.detect(scene.draw()))
        if number % 100 == 0:
            print(number, "scenes", f"{time.process_time() - started:.0f} s", flush=True)
    return tally.rows()


def restore(faces: Sequence[Pixels], count: int, out: Path, stand_in: bool) -> list[tuple[str, ...]]:
    """Restore an archive of scenes; what was found in it, and how each output differs from its input."""
    from diffbfr.cascade import packaged_cascade
    from pipelines.cluster import Cluster, ClusterConfig
    from pipelines.execution.model_ref import pin_model
    from pipelines.flows.restore_archive import RestoreOptions, restore_archive
    from pipelines.restoration.request import PhotoSettings
    from pipelines.sources.weights_ref import pin_weights

    photos = out / f"photos-{count}"
    photos.mkdir(parents=True, exist_ok=True)
    for scene in scenes(faces, count):
        place = photos / f"{scene.seed:05d}.png"
        if not place.exists():
            Image.fromarray(scene.draw()).save(place.with_suffix(".part"), "PNG", compress_level=1)
            place.with_suffix(".part").rename(place)
    detector = pin_weights(detector_weights())
    options = RestoreOptions(False, photos=PhotoSettings(detector.sha256), detector=detector)
    model = FakeModel(lq_px=32, hq_px=128) if stand_in else pin_model(packaged_cascade())
    output = out / f"restored-{count}"
    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        report = restore_archive(str(photos), str(output), model, options, cluster)
    rows = {row.name: row for row in report.rows}
    found = defaultdict(list)
    for face in report.faces:
        found[face.photo].append(face)
    tally = Tally()
    changed: Counter[str] = Counter()
    for scene in scenes(faces, count):
        name = f"{scene.seed:05d}.png"
        tally.add(scene, [_as_face(face) for face in found[name]])
        if rows[name].status == "restored":
            before, after = np.asarray(Image.open(photos / name)), np.asarray(Image.open(output / name))
            frames = {"restored": [], "left_alone": []}
            for face in found[name]:
                frames[face.status].append(fit_frame(np.array(face.points).reshape(5, 2)))
            covered = touched(scene.height, scene.width, frames["restored"], frames["left_alone"])
            differ = (before != after).any(2)
            changed.update(inside=int(differ[covered].sum()), outside=int(differ[~covered].sum()))
    verdicts = Counter(face.verdict for photo in found.values() for face in photo)
    states = Counter(row.status for row in rows.values())
    return [
        *tally.rows(),
        ("photos in one row each", f"{len(rows)} of {count}", "", ""),
        ("photos by status", ", ".join(f"{name} {number}" for name, number in states.items()), "", ""),
        ("faces", ", ".join(f"{name} {number}" for name, number in verdicts.most_common()), "", ""),
        ("pixels changed outside", str(changed["outside"]), "", ""),
        ("pixels changed inside", str(changed["inside"]), "", ""),
        ("the auditor found", "; ".join(audit(photos, output)[:3]) or "nothing", "", ""),
    ]


def _as_face(row: FaceRow) -> Face:
    box = (row.left, row.top, row.right, row.bottom)
    return Face(box, as_points(np.array(row.points).reshape(5, 2)), row.score)


def stages(finder: FaceDetector, faces: Sequence[Pixels], count: int) -> list[tuple[str, ...]]:
    """Processor time of each stage of a photo, in ms a photo, and a megapixel and a face where it applies."""
    spent: Counter[str] = Counter()
    megapixels = num_faces = 0.0
    for scene in scenes(faces, count):
        data = _jpeg(scene.draw())
        megapixels += scene.width * scene.height / 1e6
        photo = _timed(spent, "decode", lambda data=data: read_photo(data))
        finds = _timed(spent, "find", lambda photo=photo: list(finder.detect(photo.pixels)))
        frames = [fit_frame(face.points_array) for face in finds]
        crops = _timed(
            spent, "align", lambda photo=photo, frames=frames: [align(photo.pixels, f, 128) for f in frames]
        )
        restored = [RestoredFace(crop.frame, crop.pixels) for crop in crops]
        num_faces += len(restored)
        pasted = _timed(spent, "blend", lambda photo=photo, restored=restored: paste(photo.pixels, restored))
        _timed(spent, "encode", lambda photo=photo, pasted=pasted: encode_photo(photo, pasted, None, "jpeg"))
    return [
        (name, *(f"{micros / 1000 / number:.1f}" for number in (count, megapixels, num_faces)))
        for name, micros in spent.items()
    ]


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _timed(spent: Counter[str], name: str, work: Callable[[], T]) -> T:
    started = time.process_time()
    result = work()
    spent[name] += round(1e6 * (time.process_time() - started))
    return result


def main() -> None:
    """Run one of the measurements and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("find", "restore", "stages"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stand-in", action="store_true", help="a stand-in instead of the packaged cascade")
    words = parser.parse_args()
    faces = read_faces(words.faces, 32)
    if words.what == "restore":
        with tempfile.TemporaryDirectory() as folder:
            rows = restore(faces, words.count, words.out or Path(folder), words.stand_in)
            print(table(("faces", "found", "recall", "points' error"), rows))
        return
    finder = FaceSearch(load_detector(words.weights or detector_weights()))
    print(finder.name)
    if words.what == "find":
        print(table(("faces", "found", "recall", "points' error"), find(finder, faces, words.count)))
    else:
        print(
            table(("stage", "ms a photo", "ms a megapixel", "ms a face"), stages(finder, faces, words.count))
        )


if __name__ == "__main__":
    main()
