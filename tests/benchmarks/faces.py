"""Finding, fitting and pasting faces in composed scenes whose faces are known.

    python -m tests.benchmarks.faces find [--weights FILE] [--faces FOLDER] [--count 32] [--raw]
    python -m tests.benchmarks.faces large [--weights FILE] [--faces FOLDER] [--count 4]
    python -m tests.benchmarks.faces fit
    python -m tests.benchmarks.faces paste [--weights FILE] [--faces FOLDER] [--count 200] [--restored]

FOLDER holds pictures of 512 px aligned to the FFHQ frame; without one the faces are procedural. FILE is a
detector's; without one it is what `diffbfr restore` would use. Times are processor time of one core. Errors
are mean distances of the five points from those of the frame, in eye distances: faces of photos are aligned
to the frame to about 0.05 themselves. `paste` lays the same faces, found by the same detector, into photos in
several ways: clean faces in other light, or what the packaged cascade made of them (`--restored`).
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

os.environ |= {"OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1"}

import cv2
import numpy as np
from numpy.typing import NDArray

from diffbfr.cascade import Cascade, packaged_cascade
from diffbfr.faces.align import FRAME_EYES_PX, FRAME_POINTS, FRAME_PX, Frame, align, fit_frame
from diffbfr.faces.detect import Face, FaceDetector
from diffbfr.faces.light import to_light, to_stored
from diffbfr.faces.paste import RestoredFace, mask_of, paste, touched
from diffbfr.faces.search import FaceSearch
from diffbfr.faces.similarity import Similarity, fit_similarity
from diffbfr.faces.warp import warp
from diffbfr.faces.weights import load_detector
from diffbfr.images import decode, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.synthetic import render_face
from pipelines.cli.output import table
from pipelines.flows.setup_faces import detector_weights
from tests.diffbfr.faces.scenes import Placed, background, compose

Pixels = NDArray[np.uint8]

SCENE_PX: Final = 640
CASES: Final = (
    *((eyes, 0) for eyes in (6, 8, 12, 24, 96, 230)),
    *((24, turn) for turn in (30, 45, 60, 90, 135, 180)),
    (10, 45),
    (64, 135),
)
"""Eye distance and turn of the one face of a scene."""


def main() -> None:
    """Run one of the measurements and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("find", "large", "fit", "paste"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--raw", action="store_true", help="one call of the detector instead of the search")
    parser.add_argument("--restored", action="store_true", help="paste what the packaged cascade made")
    words = parser.parse_args()
    if words.what == "fit":
        print(table(("bad point, eye distances", "all five", "ours", "OpenCV's LMedS"), fits()))
        return
    faces = read_faces(words.faces, words.count)
    detector = load_detector(words.weights or detector_weights())
    finder = detector if words.raw else FaceSearch(detector)
    if words.what == "paste":
        photos = [faces[number % len(faces)] for number in range(words.count)]
        make = restored_by_cascade() if words.restored else in_other_light
        print(table(("paste", "seam, photo 1", "colour shift, levels"), pasted(finder, photos, make)))
        return
    header = ("eyes, px", "turn", "found", "false", "error", "worst", "ms")
    measure = find_cases if words.what == "find" else find_in_large
    print(detector.name)
    print(table(header, measure(finder, faces)))


def read_faces(folder: Path | None, count: int) -> list[Pixels]:
    """Faces of the frame of 512 px."""
    if folder is None:
        return [render_face(seed).pixels for seed in range(count)]
    files = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png", ".webp"))[:count]
    return [np.asarray(decode(file.read_bytes()).pixels) for file in files]


def find_cases(finder: FaceDetector, faces: Sequence[Pixels]) -> list[tuple[str, ...]]:
    """One face a scene, of known size and turn."""
    grounds = [background(SCENE_PX, SCENE_PX, seed) for seed in range(len(faces))]
    rows = []
    for eyes_px, turn in CASES:
        scenes = []
        for seed, face in enumerate(faces):
            x, y = np.random.default_rng(seed).uniform(0.35, 0.65, 2) * SCENE_PX
            placed = [Placed(face, x, y, eyes_px, turn)]
            scenes.append((placed, compose(grounds[seed], placed)))
        rows.append((str(eyes_px), str(turn), *_score(finder, scenes)))
        print(*rows[-1], flush=True)
    return rows


def find_in_large(finder: FaceDetector, faces: Sequence[Pixels]) -> list[tuple[str, ...]]:
    """Photos of 12 megapixels with eight faces of 8 to 300 px between the eyes, turned by any angle."""
    scenes = []
    for seed, _ in enumerate(faces):
        generator = np.random.default_rng(seed)
        placed = [
            Placed(
                faces[(seed + i) % len(faces)],
                500 + 1000 * (i % 4) + generator.uniform(-60, 60),
                700 + 1500 * (i // 4),
                eyes_px,
                generator.uniform(-180, 180),
            )
            for i, eyes_px in enumerate(generator.permutation([8, 12, 20, 36, 64, 110, 180, 300]))
        ]
        scenes.append((placed, compose(background(3000, 4000, seed), placed)))
    return [("8 to 300", "any", *_score(finder, scenes))]


def _score(finder: FaceDetector, scenes: Sequence[tuple[list[Placed], Pixels]]) -> tuple[str, ...]:
    found, false, errors, seconds = 0, 0, [], 0.0
    for placed, scene in scenes:
        started = time.process_time()
        finds = list(finder.detect(scene))
        seconds += time.process_time() - started
        for truth in placed:
            hit = next((face for face in finds if _is_at(face, truth)), None)
            if hit is not None:
                finds.remove(hit)
                found += 1
                off = np.linalg.norm(hit.points_array - truth.points, axis=1)
                errors.append(float(off.mean()) / truth.eyes_px)
        false += len(finds)
    total = sum(len(placed) for placed, _ in scenes)
    mean, worst = (f"{np.mean(errors):.3f}", f"{max(errors):.2f}") if errors else ("", "")
    return f"{found} of {total}", str(false), mean, worst, f"{1000 * seconds / len(scenes):.0f}"


def _is_at(face: Face, truth: Placed) -> bool:
    off = face.points_array.mean(0) - truth.points.mean(0)
    return float(np.hypot(*off)) < 0.8 * truth.eyes_px


def fits() -> list[tuple[str, ...]]:
    """The largest error of a point of the face's frame, in eye distances, with one point of five misplaced.

    The others are placed to 0.05. Means of 400 draws.
    """
    rows = []
    for missed in (0.0, 0.3, 0.5, 1.0, 2.0):
        errors = []
        for seed in range(400):
            generator = np.random.default_rng(seed)
            points = FRAME_POINTS + generator.normal(0, 0.05 * FRAME_EYES_PX / 2**0.5, (5, 2))
            angle = generator.uniform(0, 2 * np.pi)
            bad = missed * FRAME_EYES_PX * np.array([np.cos(angle), np.sin(angle)])
            points[generator.integers(5)] += bad
            cv2.setRNGSeed(seed)
            matrix, _ = cv2.estimateAffinePartial2D(points, FRAME_POINTS, method=cv2.LMEDS)
            lmeds = Similarity(matrix[0, 0], matrix[1, 0], matrix[0, 2], matrix[1, 2])
            by = (fit_similarity(points, FRAME_POINTS), fit_frame(points).to_photo.inverse(), lmeds)
            corners = np.array([[150.0, 150], [360, 150], [360, 440], [150, 440]])
            errors.append(
                [np.linalg.norm(fit(corners) - corners, axis=1).max() / FRAME_EYES_PX for fit in by]
            )
        rows.append((f"{missed}", *(f"{error:.3f}" for error in np.mean(errors, 0))))
    return rows


Make = Callable[[Pixels, Frame, np.random.Generator], Pixels]


def pasted(finder: FaceDetector, faces: Sequence[Pixels], make: Make) -> list[tuple[str, ...]]:
    """Photos whose face is found and replaced, by us and as a square.

    Seam: the gradient across the edge of the mask over that 4 to 8 px beside it, relative to the same of the
    photo. Colour shift: of the mean of what our mask covers.
    """
    ways: dict[str, Callable[[Pixels, Frame, Pixels], tuple[Pixels, NDArray[np.float32]]]] = {
        "ours": _ours,
        "square": _square,
        "square, feathered": _feathered_square,
    }
    seams: dict[str, list[float]] = {name: [] for name in ways}
    shifts: dict[str, list[float]] = {name: [] for name in ways}
    for seed, face in enumerate(faces):
        generator = np.random.default_rng(seed)
        photo = _photo_of(face, _place(generator))
        finds = finder.detect(photo)
        if not finds:
            continue
        frame = fit_frame(finds[0].points_array)
        restored = make(photo, frame, generator)
        inside = touched(*photo.shape[:2], [frame])
        for name, way in ways.items():
            result, mask = way(photo, frame, restored)
            seams[name].append(_seam(result, mask) / _seam(photo, mask))
            shifts[name].append(float(np.abs(result[inside].mean(0) - photo[inside].mean(0)).mean()))
        if (seed + 1) % 20 == 0:
            done = [f"{np.mean(seams[name]):.2f} {np.mean(shifts[name]):.2f}" for name in ways]
            print(seed + 1, "photos:", ", ".join(done), flush=True)
    print(f"{len(seams['ours'])} of {len(faces)} photos with a face found")
    return [(name, f"{np.mean(seams[name]):.2f}", f"{np.mean(shifts[name]):.2f}") for name in ways]


def in_other_light(photo: Pixels, frame: Frame, generator: np.random.Generator) -> Pixels:
    """The face of the photo itself, each channel up to 15 % brighter or darker."""
    cast = np.float32(generator.uniform(0.85, 1.15, 3))
    return to_stored(to_light(align(photo, frame, FRAME_PX).pixels) * cast, np.dtype(np.uint8))


def restored_by_cascade() -> Make:
    """What the packaged cascade makes of the face, enlarged to 512 px."""
    cascade = Cascade.load(packaged_cascade())

    def make(photo: Pixels, frame: Frame, generator: np.random.Generator) -> Pixels:
        crop = align(photo, frame, cascade.lq_px).pixels
        restored = cascade.restore(to_tensor([crop]), [noise_key(str(generator.integers(1 << 32)))]).tem
        return cv2.resize(to_pixels(restored)[0], (FRAME_PX, FRAME_PX), interpolation=cv2.INTER_CUBIC)

    return make


def _place(generator: np.random.Generator) -> Frame:
    eyes_px = generator.uniform(24, 60)
    placed = Placed(
        np.zeros((1, 1, 3), np.uint8), *generator.uniform(200, 440, 2), eyes_px, generator.uniform(-30, 30)
    )
    return Frame(placed.to_scene)


def _photo_of(face: Pixels, frame: Frame) -> Pixels:
    """A scene with the whole picture of a face in it, mirrored beyond its edges, so that the seam runs over
    what belongs together.
    """
    picture = warp(face, frame.to_photo.inverse(), SCENE_PX, SCENE_PX)
    return np.rint(cv2.GaussianBlur(picture, (0, 0), 1.0)).astype(np.uint8)


def _ours(photo: Pixels, frame: Frame, restored: Pixels) -> tuple[Pixels, NDArray[np.float32]]:
    mask = mask_of(frame, *photo.shape[:2])
    assert mask is not None
    whole = np.zeros(photo.shape[:2], np.float32)
    whole[mask.rows, mask.columns] = mask.share
    return paste(photo, [RestoredFace(frame, restored)]), whole


def _square(photo: Pixels, frame: Frame, restored: Pixels) -> tuple[Pixels, NDArray[np.float32]]:
    return _laid(photo, frame, restored, np.ones((FRAME_PX, FRAME_PX), np.float32))


def _feathered_square(photo: Pixels, frame: Frame, restored: Pixels) -> tuple[Pixels, NDArray[np.float32]]:
    """An eroded square with a blurred edge, as restorers of single images have it."""
    mask = np.zeros((FRAME_PX, FRAME_PX), np.float32)
    mask[40:-40, 40:-40] = 1
    return _laid(photo, frame, restored, cv2.GaussianBlur(mask, (0, 0), 11))


def _laid(
    photo: Pixels, frame: Frame, restored: Pixels, mask: NDArray[np.float32]
) -> tuple[Pixels, NDArray[np.float32]]:
    size = (photo.shape[1], photo.shape[0])
    back = cv2.warpAffine(restored, frame.to_photo.matrix, size, flags=cv2.INTER_LINEAR)
    share = cv2.warpAffine(mask, frame.to_photo.matrix, size, flags=cv2.INTER_LINEAR)
    blended = photo + share[..., None] * (back.astype(np.float32) - photo)
    return np.rint(blended).astype(np.uint8), share


def _seam(picture: Pixels, mask: NDArray[np.float32]) -> float:
    box = tuple(slice(max(0, places.min() - 12), places.max() + 13) for places in np.nonzero(mask))
    picture, mask = picture[box], mask[box]
    inside = (mask > 0.5).astype(np.uint8)
    away = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    normal = np.stack(np.gradient(cv2.GaussianBlur(away, (0, 0), 1.5)), 2)
    slopes = np.stack(np.gradient(picture.astype(np.float32).mean(2)), 2)
    across = np.abs((slopes * normal).sum(2))
    beside = (np.abs(away) > 4) & (np.abs(away) < 8)
    return float(across[np.abs(away) <= 1.5].mean() / across[beside].mean())


if __name__ == "__main__":
    main()
