"""Whole photos of 0 to 8 known faces each: what is found of them, and what an archive of them costs.

    python -m tests.benchmarks.archive find [--weights FILE] [--faces FOLDER] [--count 2000]
    python -m tests.benchmarks.archive restore [--faces FOLDER] [--count 200] [--out FOLDER]
    python -m tests.benchmarks.archive stages [--weights FILE] [--faces FOLDER] [--count 40]

The faces are 24 to 512 px wide (of the FFHQ frame), upright or turned by any angle, and one in ten reaches
over the border. FOLDER holds pictures of 512 px aligned to the FFHQ frame; without one the faces are
procedural. `find` prints recall, error of the points (in eye distances) and false finds by size and by angle.
`restore` restores an archive with the packaged cascade and counts its rows and the pixels changed outside of
the masks. `stages` prints the processor time of each stage.
"""

import argparse
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
from diffbfr.faces.detect import FaceDetector
from diffbfr.faces.paste import RestoredFace, mask_of, paste
from diffbfr.faces.search import FaceSearch
from diffbfr.faces.weights import load_detector
from diffbfr.images.photo import read_photo
from pipelines.cli.output import table
from pipelines.flows.setup_faces import detector_weights
from pipelines.restoration.photo_output import encode_photo
from tests.benchmarks.faces import _is_at, read_faces
from tests.diffbfr.faces.scenes import Placed, background, compose

Pixels = NDArray[np.uint8]
T = TypeVar("T")

SIZES: Final = (24, 32, 48, 96, 192, 512)
"""Edges of the classes of size: the side of the frame in pixels of the photo."""
TURNS: Final = (0, 30, 60, 90, 135, 180)
"""Edges of the classes of turn, in degrees to either side."""
NUM_BACKGROUNDS: Final = 40


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo and the faces in it."""

    pixels: Pixels
    placed: tuple[Placed, ...]


def scenes(faces: Sequence[Pixels], count: int) -> Iterator[Scene]:
    """Photos of 500 to 900 px whose faces do not cover each other."""
    for seed in range(count):
        generator = np.random.default_rng(seed)
        width, height = (int(side) for side in generator.integers(500, 900, 2))
        ground = background(height, width, seed % NUM_BACKGROUNDS)
        placed: list[Placed] = []
        for _ in range(int(generator.integers(0, 9))):
            face = _place(generator, faces[int(generator.integers(len(faces)))], width, height)
            far = (
                np.hypot(face.x - other.x, face.y - other.y) > 2 * (face.eyes_px + other.eyes_px)
                for other in placed
            )
            if all(far):
                placed.append(face)
        yield Scene(compose(ground, placed), tuple(placed))


def _place(generator: np.random.Generator, face: Pixels, width: int, height: int) -> Placed:
    frame_px = float(np.exp(generator.uniform(np.log(SIZES[0]), np.log(SIZES[-1]))))
    eyes_px = frame_px * FRAME_EYES_PX / FRAME_PX
    turn = generator.uniform(-180, 180) if generator.random() < 0.5 else generator.uniform(-15, 15)
    margin = -0.6 * eyes_px if generator.random() < 0.1 else 2.2 * eyes_px
    margin = min(margin, width / 2 - 1, height / 2 - 1)
    x = generator.uniform(margin, width - margin)
    y = generator.uniform(margin, height - margin)
    return Placed(face, x, y, eyes_px, turn)


def _is_inside(face: Placed, scene: Pixels) -> bool:
    """Whether all five points lie in the photo."""
    height, width = scene.shape[:2]
    points = face.points
    return bool(((points >= 0) & (points < (width, height))).all())


def _class(value: float, edges: Sequence[int]) -> str:
    for low, high in pairwise(edges):
        if low <= value <= high:
            return f"{low} to {high}"
    return f"over {edges[-1]}"


def find(finder: FaceDetector, faces: Sequence[Pixels], count: int) -> list[tuple[str, ...]]:
    """Recall and points' error by class of size, of turn, and at the border; false finds in all."""
    total: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    errors: defaultdict[str, list[float]] = defaultdict(list)
    false = num_scenes = 0
    started = time.process_time()
    for scene in scenes(faces, count):
        finds = list(finder.detect(scene.pixels))
        num_scenes += 1
        for truth in scene.placed:
            if _is_inside(truth, scene.pixels):
                size = f"frame {_class(truth.eyes_px * FRAME_PX / FRAME_EYES_PX, SIZES)} px"
                turn = f"turned {_class(abs(truth.turn), TURNS)}"
                classes = ["all inside", size, turn]
            else:
                classes = ["over the border"]
            hit = next((face for face in finds if _is_at(face, truth)), None)
            total.update(classes)
            if hit is None:
                continue
            finds.remove(hit)
            hits.update(classes)
            off = np.linalg.norm(hit.points_array - truth.points, axis=1).mean() / truth.eyes_px
            for name in classes:
                errors[name].append(float(off))
        false += len(finds)
        if num_scenes % 100 == 0:
            print(num_scenes, "scenes", f"{time.process_time() - started:.0f} s", flush=True)
    found = sum(hits[name] for name in ("all inside", "over the border"))
    rows = [
        (
            name,
            f"{hits[name]} of {total[name]}",
            f"{hits[name] / total[name]:.1%}",
            f"{np.mean(errors[name]):.3f}",
        )
        for name in sorted(total)
    ]
    return [*rows, ("precision", f"{found} of {found + false}", f"{found / (found + false):.2%}", "")]


def restore(faces: Sequence[Pixels], count: int, out: Path) -> list[tuple[str, ...]]:
    """Restore an archive of scenes, and compare each output with its input."""
    from diffbfr.cascade import packaged_cascade
    from pipelines.cluster import Cluster, ClusterConfig
    from pipelines.execution.model_ref import pin_model
    from pipelines.flows.restore_archive import RestoreOptions, restore_archive
    from pipelines.restoration.face_rows import read_faces as read_rows
    from pipelines.restoration.request import PhotoSettings
    from pipelines.sources.weights_ref import pin_weights

    photos = out / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes(faces, count)):
        Image.fromarray(scene.pixels).save(photos / f"{number:05d}.png")
    detector = pin_weights(detector_weights())
    options = RestoreOptions(False, photos=PhotoSettings(detector.sha256), detector=detector)
    started = time.perf_counter()
    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        report = restore_archive(
            str(photos), str(out / "restored"), pin_model(packaged_cascade()), options, cluster
        )
    seconds = time.perf_counter() - started
    rows = list(report.rows)
    found = defaultdict(list)
    for face in read_rows(str(out / "restored")):
        found[face.photo].append(face)
    changed_outside = changed_inside = 0
    for row in rows:
        before = np.asarray(Image.open(photos / row.name))
        after = np.asarray(Image.open(out / "restored" / row.output))
        covered = np.zeros(before.shape[:2], bool)
        for face in found[row.name]:
            if face.status == "restored":
                frame = fit_frame(np.array(face.points).reshape(5, 2))
                mask = mask_of(frame, *covered.shape)
                if mask is not None:
                    covered[mask.rows, mask.columns] |= mask.share > 0
        changed = (before != after).any(2)
        changed_outside += int(changed[~covered].sum())
        changed_inside += int(changed[covered].sum())
    verdicts = Counter(face.verdict for photo in found.values() for face in photo)
    states = Counter(row.status for row in rows)
    return [
        ("photos, each in one row", str(len(rows) == count == len({row.name for row in rows}))),
        ("photos by status", ", ".join(f"{name} {number}" for name, number in states.items())),
        ("faces by verdict", ", ".join(f"{name} {number}" for name, number in verdicts.most_common())),
        ("pixels changed outside of the masks", str(changed_outside)),
        ("pixels changed inside", str(changed_inside)),
        ("photos/s, faces/s", f"{len(rows) / seconds:.2f}, {sum(r.num_faces for r in rows) / seconds:.2f}"),
    ]


def stages(finder: FaceDetector, faces: Sequence[Pixels], count: int) -> list[tuple[str, ...]]:
    """Processor time of each stage of a photo, in ms a photo, and a megapixel and a face where it applies."""
    spent: Counter[str] = Counter()
    megapixels = num_faces = 0.0
    for scene in scenes(faces, count):
        data = _jpeg(scene.pixels)
        megapixels += scene.pixels[..., 0].size / 1e6
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
    words = parser.parse_args()
    faces = read_faces(words.faces, 32)
    if words.what == "restore":
        with tempfile.TemporaryDirectory() as folder:
            print(table(("", ""), restore(faces, words.count, words.out or Path(folder))))
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
