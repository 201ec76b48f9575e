"""The whole command `restore` on a million listed names: memory of its driver, and the opening of its journal.

`python -m tests.benchmarks.journal [--photos N] [--left N] [--ray] [--made FOLDER]` packs N photos of one
pixel, each of its own colour, into a zip and commits, with the product's own functions, that each was refused.
Then it opens the journal in a new process, and runs the command in another: with nothing left it writes the
ledger and the page. `--left N` leaves the last N photos to the command, which reads, decodes and refuses them
(`--left 1000000` is a run from its beginning). `--ray` runs it with one worker, so that the driver has Ray's
client. What is made is kept in FOLDER; a command that is ended there goes on at the next call.
"""

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import pyarrow.parquet as pq

from diffbfr.cascade import packaged_cascade
from pipelines.execution.model_ref import pin_model
from pipelines.flows.restore_archive import RestoreOptions, _request
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.journal import replace_records
from pipelines.restoration.open_journal import load_journal
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.request import pin_request
from pipelines.restoration.segments import Values, to_values
from pipelines.restoration.work import empty_row
from pipelines.sources import PhotoRef, open_source

P = ParamSpec("P")
T = TypeVar("T")
_PER_SEGMENT: Final = 4096
_COMMAND: Final = """
import atexit, sys
from tests.memory import peak_kib
atexit.register(lambda: print(f"peak of the driver {peak_kib() / 1024:.1f}", file=sys.stderr))
from pipelines.cli.app import main
main()
"""


def pack(place: Path, photos: int) -> Path:
    """Make a zip of photos of one pixel, no two alike, in folders of a thousand."""
    with zipfile.ZipFile(place, "w") as archive:
        for number in range(photos):
            name = f"album-{number // 1000:04d}/photo {number:08d}.png"
            archive.writestr(zipfile.ZipInfo(name), one_pixel(number))
    return place


def one_pixel(colour: int) -> bytes:
    """A PNG of one pixel of a 24-bit colour."""
    ihdr = struct.pack(">II5B", 1, 1, 8, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + colour.to_bytes(3, "big"))
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", ihdr), (b"IDAT", row), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def commit_refused(archive: Path, output: Path, num_done: int) -> Path:
    """Make an output folder as a run leaves it that refused the first `num_done` photos."""
    source = open_source(archive, every_file=True)
    request = _request(source, pin_model(packaged_cascade()), RestoreOptions(aligned=True))
    output.mkdir()
    pin_request(str(output), request, ())
    done = _refused(islice(source.refs(), num_done))
    while segment := list(islice(done, _PER_SEGMENT)):
        replace_records(str(output), (), segment, request)
    return output


def _refused(refs: Iterable[PhotoRef]) -> Iterator[Values]:
    """The outcome of each photo, as a run would have committed it."""
    for number, ref in enumerate(refs):
        row = empty_row(ref, "quarantined", "too_small", "it has 1 x 1 pixels; expected at least 8 x 8")
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        values = to_values(Outcome(row, ref.fingerprint, 0), float(number))
        yield (*values[:10], digest, *values[11:])


def open_journal(output: str) -> tuple[int, float, float]:
    """The outcomes of a journal, and the seconds and the processor seconds of its opening."""
    with ArchiveIndex() as index:
        started, worked = time.perf_counter(), time.process_time()
        load_journal(output, index)
        return index.last_outcome(), time.perf_counter() - started, time.process_time() - worked


def apart(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """The result of a call in a new process, so that its memory and its caches are nobody else's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments, **options).result()


def run_command(archive: Path, output: Path, photos: int, num_workers: int) -> tuple[float, float]:
    """Run the command; its seconds, and the largest resident set of its driver in MB."""
    words = ["restore", str(archive), str(output), "--aligned", f"--max-bad={photos}"]
    words += ["--set", f"cluster.num_workers={num_workers}"]
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", _COMMAND, *words], stderr=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - started, float(ran.stderr.split("peak of the driver ")[1].split()[0])


def main() -> None:
    """Make what is missing, open the journal, run the command, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument("--left", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--made", type=Path, help="A folder to keep what is made in, and to use again.")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = chosen.made or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        archive, output = folder / f"{chosen.photos}.zip", folder / f"out-{chosen.photos}-{chosen.left}"
        if not archive.exists():
            apart(pack, archive.with_suffix(".part"), chosen.photos).rename(archive)
        if not output.exists():
            part = output.with_suffix(".part")
            apart(commit_refused, archive, part, chosen.photos - chosen.left).rename(output)
        known, journal_s, journal_cpu_s = apart(open_journal, str(output))
        run_s, peak_mb = run_command(archive, output, chosen.photos, int(chosen.ray))
        rows = pq.read_metadata(output / "ledger.parquet").num_rows
    figures = {"known": known, "journal_s": journal_s, "journal_cpu_s": journal_cpu_s}
    print(json.dumps({"photos": chosen.photos, **figures, "run_s": run_s, "rows": rows, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
