"""How far a reader has to walk: the functions that six stories pass through, by file.

    python -m tests.benchmarks.walks [FOLDER]

Each story is one command, run in this process. A stop is a function of ours that is called for the first time; a
return is a stop in a file that the walk had left before. Classes' bodies, comprehensions, lambdas and properties
are no stops. Minutes on two cores.
"""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = (
    "cluster.num_workers=0",
    "data.shard_size=8",
    "data.test_fraction=0.2",
    *(f"{stage}.training.num_samples=16" for stage in ("irm1", "irm2", "tem")),
    *(f"{stage}.training.global_batch=8" for stage in ("irm1", "irm2", "tem")),
    "restore.num_photos=2",
)


@dataclass
class Walk:
    """Counts the stops between two marks, each the end of a function's place, such as `steps/train.py:report`."""

    begin: str = ""
    end: str = ""
    stops: list[str] = field(default_factory=list)
    state: str = "before"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(ROOT)) or code.co_name.startswith("<"):
            return
        place = f"{code.co_filename.removeprefix(f'{ROOT}/')}:{code.co_name}"
        if not place.startswith(("diffbfr/", "pipelines/")):
            return
        with self.lock:
            if self.state == "before" and place.endswith(self.begin):
                self.state = "on"
            if self.state == "on" and place not in self.stops:
                self.stops.append(place)
            if self.state == "on" and self.end and place.endswith(self.end):
                self.state = "after"

    def figures(self) -> tuple[int, int, int]:
        """Stops, files, returns."""
        files = [stop.partition(":")[0] for stop in self.stops]
        left: set[str] = set()
        returns = 0
        for before, now in pairwise(files):
            if now != before:
                left.add(before)
                returns += now in left
        return len(files), len(set(files)), returns


def follow(walk: Walk, work: Callable[[], object]) -> None:
    """Run some work with every call of every thread counted."""
    threading.setprofile(walk)
    sys.setprofile(walk)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def command(*arguments: str) -> Callable[[], object]:
    """A command of `diffbfr`, in this process."""

    def call() -> None:
        from pipelines.cli import main

        before, sys.argv = sys.argv, ["diffbfr", *arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.argv = before

    return call


def stories(place: Path) -> Sequence[tuple[str, Walk, Callable[[], object]]]:
    """Title, walk and command of each story, in an order in which one has what it needs from those before."""
    photos, root = str(place / "photos"), str(place / "root")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    run = ("--recipe", "smoke", "--faces", photos, "--root", root, *settings)
    photo = next(iter(sorted(Path(photos).iterdir())))
    restore = (str(photo), str(place / "restored"), "--aligned", "--set", "cluster.num_workers=0")
    train = "steps/train.py:train_stage"
    return (
        ("photo to dataset", Walk(), command("shard", *run)),
        ("--set to optimizer", Walk("", ":learning_rate"), command("train", "irm1", *run)),
        ("dataset to loss", Walk(train, "objective.py:stage_loss"), command("train", "tem", *run)),
        ("metric to MLflow", Walk("train.py:report", "runs.py:log_points"), command("train", "irm2", *run)),
        (
            "checkpoint to registry",
            Walk("register.py:register_all", ":restore_archive"),
            command("run", *run),
        ),
        ("photo through restore", Walk(), command("restore", *restore)),
    )


def write_photos(folder: Path) -> None:
    """Procedural faces as PNG files, made by another process, whose calls do not count."""
    code = (
        "import sys, pathlib\nfrom diffbfr.images import encode_png\nfrom diffbfr.synthetic import render_face\n"
        "for n in range(16): pathlib.Path(sys.argv[1], f'{n:02d}.png').write_bytes(encode_png(render_face(n, 128).pixels))"
    )
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT)


def main() -> None:
    """Print a line a story."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        write_photos(place / "photos")
        for title, walk, work in stories(place):
            follow(walk, work)
            stops, files, returns = walk.figures()
            print(f"{title:<24}{stops:>4} stops  {files:>3} files  {returns:>3} returns")


if __name__ == "__main__":
    main()
