"""The whole command `restore` on two cores: its rate beside that of the bare sampler, and its memory.

    python -m tests.benchmarks.command rate [--photos 1000] [--bare 48] [--rounds 2] [--whole] [--model faces]
    python -m tests.benchmarks.command memory [--counts 100 10000] [--workers 1]

`rate` restores crops of 48 px (with `--whole`, photos of 512 px with a face each) with the packaged cascade on
two workers, from the start of the command to its end. Before and after it, two processes run the sampler alone
on batches of four faces, on a thread each. It prints faces a second, their ratio, and the processor time of
each kind of process of the command a face. `memory` restores whole photos of 96 px with a face each, with a
stand-in for the cascade, on Ray's workers or (`--workers 0`) in the driver, and prints the largest resident set of each kind of process. Both need
a quiet machine with two cores.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

os.environ |= {"OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
from PIL import Image

from diffbfr.images import encode_png, resize
from diffbfr.packaged import named_folder
from diffbfr.synthetic import render_face
from pipelines.cli.output import table
from tests.benchmarks.processes import command_line, own_seconds, peak_mb, tree
from tests.diffbfr.faces.scenes import Placed, background, compose

BATCH: Final = 4
CORES: Final = 2
_KINDS: Final = {
    "ray::Worker": "workers",
    "pipelines.sources.sandbox": "decoders",
    "raylet/raylet": "raylet",
    "gcs_server": "head of Ray",
    "ray::": "other workers of Ray",
}
_MEMORY_COMMAND: Final = """
import sys
from tests.benchmarks.command import restore_with_stand_in
restore_with_stand_in(*sys.argv[1:])
"""


@dataclass
class Watched:
    """What a command took: seconds, and by kind of process the processor time (s) and the largest memory (MB)."""

    seconds: float = 0.0
    worked: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)


def watch(command: list[str], tell_s: float = float("inf")) -> Watched:
    """Run a command and look at its processes every half second; an error if it fails.

    Every `tell_s` its largest memory so far (MB) is printed.
    """
    worked: dict[int, float] = {}
    peaks: dict[int, float] = {}
    kinds: dict[int, str] = {}
    started = told = time.perf_counter()
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None:
        for process in tree(run.pid):
            # one that has just ended has no command line any more
            if kind := "driver" if process == run.pid else _kind(process):
                kinds[process] = kind
        worked |= own_seconds(run.pid)
        for process, peak in peak_mb(run.pid).items():  # 0 for one that has ended
            peaks[process] = max(peak, peaks.get(process, 0.0))
        if time.perf_counter() - told > tell_s:
            told = time.perf_counter()
            print(f"{told - started:.0f} s: {[round(peak) for peak in peaks.values()]} MB", flush=True)
        time.sleep(0.5)
    found = Watched(time.perf_counter() - started)
    if run.returncode:
        raise RuntimeError(f"{command} ended with {run.returncode}")
    for process, kind in kinds.items():
        found.worked[kind] = found.worked.get(kind, 0.0) + worked.get(process, 0.0)
        found.peak[kind] = max(found.peak.get(kind, 0.0), peaks.get(process, 0.0))
    return found


def _kind(process: int) -> str:
    line = command_line(process)
    if not line:
        return ""
    return next((kind for mark, kind in _KINDS.items() if mark in line), "others")


def bare_rate(model: str, num_faces: int) -> float:
    """Faces a second of two processes that do nothing but sample."""
    context = multiprocessing.get_context("spawn")
    ready, times = context.Barrier(CORES), context.Queue()
    runs = [
        context.Process(target=_sample, args=(model, num_faces // CORES, ready, times)) for _ in range(CORES)
    ]
    for run in runs:
        run.start()
    rates = [times.get() for _ in runs]
    for run in runs:
        run.join()
    return float(sum(rates))


def _sample(model: str, num_faces: int, ready: Barrier, times: Any) -> None:
    import torch

    from diffbfr.cascade import Cascade
    from diffbfr.images import lq_to_model, to_tensor
    from diffbfr.keys import noise_key

    torch.set_num_threads(1)
    cascade = Cascade.load(named_folder(model))
    x_0 = to_tensor([lq_to_model(render_face(seed, 48).pixels, cascade.lq_px) for seed in range(BATCH)])
    keys = [noise_key(f"face {number}") for number in range(BATCH)]
    cascade.restore(x_0, keys, "fast")  # the first plans kernels
    ready.wait()
    started = time.perf_counter()
    for _ in range(num_faces // BATCH):
        cascade.restore(x_0, keys, "fast")
    times.put(num_faces // BATCH * BATCH / (time.perf_counter() - started))


def make_crops(folder: Path, count: int) -> None:
    """Crops of faces, no two alike."""
    folder.mkdir()
    base = [resize(render_face(seed, 128).pixels, 48, "bilinear") for seed in range(min(count, 50))]
    for number in range(count):
        noise = np.random.default_rng(number).integers(-8, 9, (48, 48, 3))
        pixels = np.clip(base[number % len(base)] + noise, 0, 255).astype(np.uint8)
        (folder / f"{number:05d}.png").write_bytes(encode_png(pixels))


def make_photos(folder: Path, count: int, px: int, eyes_px: float) -> None:
    """JPEG photos with a procedural face each: up to 50 of them, and copies that differ by a comment."""
    folder.mkdir()
    base = []
    for seed in range(min(count, 50)):
        place = Placed(render_face(seed).pixels, px / 2, px / 2, eyes_px, float(seed % 30 - 15))
        buffer = io.BytesIO()
        Image.fromarray(compose(background(px, px, seed), [place])).save(buffer, "JPEG", quality=90)
        base.append(buffer.getvalue())
    for number in range(count):
        data, text = base[number % len(base)], f"{number:08d}".encode()
        comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        (folder / f"{number:05d}.jpg").write_bytes(data[:2] + comment + data[2:])


def rate(photos: int, bare: int, rounds: int, is_whole: bool, model: str) -> list[tuple[str, ...]]:
    """The rates and their ratio, and what the command spends a face by kind of process."""
    bares, wholes, spent = [bare_rate(model, bare)], [], defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "in")
        if is_whole:
            make_photos(source, photos, 512, 24.0)
        else:
            make_crops(source, photos)
        for number in range(rounds):
            output = Path(name, f"out-{number}")
            words = ["restore", str(source), str(output), "--set", f"cluster.num_workers={CORES}"]
            words += ["--model", model]
            words += [] if is_whole else ["--aligned"]
            found = watch([sys.executable, "-c", "from pipelines.cli import main; main()", *words])
            bares.append(bare_rate(model, bare))
            counts = json.loads((output / "restore.json").read_text())["counts"]
            if counts["restored"] != photos:
                raise RuntimeError(f"{counts} of {photos} photos")
            wholes.append(photos / found.seconds)
            for kind, seconds in found.worked.items():
                spent[kind].append(1000 * seconds / photos)
            print(
                f"command {wholes[-1]:.3f} faces/s, sampler {bares[-2]:.3f} and {bares[-1]:.3f}", flush=True
            )
    ratios = [one / statistics.mean(bares[at : at + 2]) for at, one in enumerate(wholes)]
    return [
        ("bare sampler, faces/s", _range(bares)),
        ("command, faces/s", _range(wholes)),
        ("ratio", _range(ratios)),
        ("processor of the sampler, ms a face", f"{1000 * CORES / statistics.mean(bares):.0f}"),
        *((f"processor of {kind}, ms a face", _range(each, 1)) for kind, each in sorted(spent.items())),
    ]


def memory(counts: list[int], num_workers: int) -> list[tuple[str, ...]]:
    """The largest memory of each kind of process by number of photos."""
    columns: list[Mapping[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        for count in counts:
            source = Path(name, f"in-{count}")
            make_photos(source, count, 96, 12.0)
            words = [str(source), str(Path(name, f"out-{count}")), str(num_workers)]
            columns.append(watch([sys.executable, "-c", _MEMORY_COMMAND, *words], tell_s=60).peak)
            print(count, "photos", dict(columns[-1]), flush=True)
    return [(kind, *(f"{column.get(kind, 0.0):.0f}" for column in columns)) for kind in sorted(columns[-1])]


def restore_with_stand_in(source: str, output: str, num_workers: str) -> None:
    """Restore whole photos; the faces are enlarged and get some noise."""
    from pipelines.cluster import Cluster, ClusterConfig
    from pipelines.flows.restore_archive import RestoreOptions, restore_archive
    from pipelines.flows.restore_page import write_restore_page
    from pipelines.flows.setup_faces import detector_weights
    from pipelines.restoration.request import PhotoSettings
    from pipelines.sources.weights_ref import pin_weights
    from tests.pipelines.fake_cascade import FakeModel

    detector = pin_weights(detector_weights())
    options = RestoreOptions(False, photos=PhotoSettings(detector.sha256), detector=detector)
    with Cluster(ClusterConfig(num_workers=int(num_workers), cpus_per_worker=1)) as cluster:
        report = restore_archive(source, output, FakeModel(lq_px=32, hq_px=128), options, cluster)
    if report.counts.restored < 0.9 * len(report.rows):
        raise RuntimeError(f"{report.counts}; expected a face in nearly each photo")
    write_restore_page(report)


def _range(values: list[float], digits: int = 3) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Run one of the measurements and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "memory"))
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--bare", type=int, default=48, help="faces of the bare sampler each time")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="packaged", help="packaged or faces")
    parser.add_argument("--whole", action="store_true", help="whole photos instead of crops")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--workers", type=int, default=1)
    words = parser.parse_args()
    if words.what == "rate":
        print(table(("", ""), rate(words.photos, words.bare, words.rounds, words.whole, words.model)))
    else:
        print(table(("MB", *map(str, words.counts)), memory(words.counts, words.workers)))


if __name__ == "__main__":
    main()
