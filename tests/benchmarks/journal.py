"""The driver of `restore` with a million listed names: memory, and the time to open a finished journal.

`python -m tests.benchmarks.journal [--photos N] [--ray]` packs N one-pixel photos into a zip and commits, with
the product's own functions, that each was refused. Then it opens the journal alone, and runs the whole command
again, which finds nothing to do and writes the ledger. `--left N` leaves the last N photos to do, which are
refused by the run. `--ray` starts a Ray of our own first, so that its client counts.
"""

import argparse
import hashlib
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Final

from PIL import Image

from pipelines.cluster import Cluster, ClusterConfig
from pipelines.flows.restore_archive import RestoreOptions, _request, restore_archive
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.journal import replace_records
from pipelines.restoration.open_journal import load_journal
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.request import pin_request
from pipelines.restoration.segments import Values, to_values
from pipelines.restoration.work import empty_row
from pipelines.sources import PhotoRef, open_source
from tests.memory import peak_kib
from tests.pipelines.fake_cascade import FakeModel

_PER_SEGMENT: Final = 4096


def pack(place: Path, photos: int) -> None:
    """A zip of one-pixel photos of a few sizes, in folders of a thousand."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    with zipfile.ZipFile(place, "w") as archive:
        for number in range(photos):
            name = f"album-{number // 1000:04d}/photo {number:08d}.png"
            archive.writestr(zipfile.ZipInfo(name), buffer.getvalue())


def committed(refs: Iterable[PhotoRef]) -> Iterator[Values]:
    """The outcome of each photo, as a run would have committed it."""
    for number, ref in enumerate(refs):
        row = empty_row(ref, "quarantined", "too_small", "it has 1 x 1 pixels; expected at least 8 x 8")
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        values = to_values(Outcome(row, ref.fingerprint, 0), float(number))
        yield (*values[:10], digest, *values[11:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument("--left", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--made", type=Path, help="A folder to keep what is made in, and to use again.")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = chosen.made or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        archive, output = folder / f"{chosen.photos}.zip", str(folder / f"out-{chosen.photos}-{chosen.left}")
        if not archive.exists():
            pack(archive, chosen.photos)
        source, model, options = open_source(archive, every_file=True), FakeModel(), RestoreOptions(True)
        if not Path(output).exists():
            request = _request(source, model, options)
            Path(output).mkdir()
            pin_request(output, request, ())
            refs = source.refs()
            done = committed(islice(refs, chosen.photos - chosen.left))
            while segment := list(islice(done, _PER_SEGMENT)):
                replace_records(output, (), segment, request)
        workers = 1 if chosen.ray else 0
        cluster = stack.enter_context(Cluster(ClusterConfig(num_workers=workers)))
        if chosen.ray:
            cluster.start()
        with ArchiveIndex() as index:
            started, worked = time.perf_counter(), time.process_time()
            load_journal(output, index)
            opened = {
                "journal_s": time.perf_counter() - started,
                "journal_cpu_s": time.process_time() - worked,
            }
            assert index.last_outcome() == chosen.photos - chosen.left
        started, worked = time.perf_counter(), time.process_time()
        report = restore_archive(str(archive), output, model, options, cluster)
        print(
            json.dumps(
                {
                    "photos": chosen.photos,
                    "worked": report.num_worked,
                    **opened,
                    "run_s": time.perf_counter() - started,
                    "run_cpu_s": time.process_time() - worked,
                    "peak_mb": peak_kib() / 1024,
                }
            )
        )


if __name__ == "__main__":
    main()
