"""A large colour profile or text is left out with a note; it makes no output that cannot be opened, and no memory."""

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffbfr.images import decode
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.flows.restore_page import write_restore_page
from tests.benchmarks.harness import peak_bytes
from tests.counts import count
from tests.diffbfr.image_corpus import chunk, png
from tests.pipelines.fake_cascade import FakeModel

FACE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
ROOT = Path(__file__).parents[2]


def profile(num_bytes: int) -> bytes:
    return (bytes(16) + b"RGB ").ljust(num_bytes, b"\7")


def with_profile(image_format: str, num_bytes: int) -> bytes:
    if image_format == "PNG":
        rows = b"".join(b"\0" + row.tobytes() for row in FACE)
        return png(32, 32, rows, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile(num_bytes), 1)))
    buffer = io.BytesIO()
    Image.fromarray(FACE).save(buffer, image_format, icc_profile=profile(num_bytes))
    return buffer.getvalue()


def test_a_restored_photo_leaves_out_a_profile_that_no_reader_would_take(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sizes = {"small": 60_000, "largest": 1 << 20, "large": (1 << 20) + 1, "huge": 3_000_000}
    for image_format in ("PNG", "TIFF", "JPEG", "WEBP"):
        for name, num_bytes in sizes.items():
            (tmp_path / "in" / f"{name}.{image_format.lower()}").write_bytes(
                with_profile(image_format, num_bytes)
            )
    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        options = RestoreOptions(aligned=True)
        report = restore_archive(str(tmp_path / "in"), str(tmp_path / "out"), FakeModel(), options, cluster)
        assert report.counts.restored + report.counts.duplicate == len(report.rows) == 16
        for row in report.rows:
            kept = Path(row.name).stem in ("small", "largest")
            with Image.open(tmp_path / "out" / row.output) as output:
                output.load()
                assert ("icc_profile" in output.info) == kept
            assert ("left out" in row.message) == (not kept)
        assert Path(write_restore_page(report)).exists()
        again = restore_archive(str(tmp_path / "in"), str(tmp_path / "out"), FakeModel(), options, cluster)
        assert again.num_worked == 0


@pytest.mark.slow
def test_large_profiles_take_the_memory_of_one_at_a_time(tmp_path: Path) -> None:
    """A unit held all of its profiles: sixteen of 200 MB took 4.2 GB. Now the number makes no difference."""
    folder = tmp_path / "in"
    folder.mkdir()
    megabytes = count(60, 200)
    (folder / "0.tif").write_bytes(with_profile("TIFF", megabytes * 1_000_000))
    for number in range(1, 12):
        (folder / f"{number}.tif").hardlink_to(folder / "0.tif")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipelines.sources import open_source\n"
        "from pipelines.restoration.work import WorkItem\n"
        "from pipelines.steps.restore import RestoreTask, RestoreWorker\n"
        "from tests.pipelines.restore_requests import REQUEST\n"
        "from tests.memory import peak_kib\n"
        "from tests.pipelines.fake_cascade import FakeModel\n"
        "source = open_source(sys.argv[1], every_file=True)\n"
        "items = tuple(WorkItem(ref, f'{Path(ref.name).stem}.png') for ref in source.refs())\n"
        "task = RestoreTask(0, source, items, sys.argv[2], REQUEST)\n"
        "report = RestoreWorker(FakeModel())(task)\n"
        "assert all('left out' in it.row.message for it in report.outcomes), report\n"
        "print(peak_kib())\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    worker_kib = int(done.stdout)
    assert worker_kib < 300_000 + 7_500 * megabytes  # twelve at once take 12,000 for each


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_text_of_a_gigabyte_is_not_unfolded(kind: bytes) -> None:
    unfolding = zlib.compressobj(9)
    folded = b"".join(unfolding.compress(bytes(1 << 20)) for _ in range(256)) + unfolding.flush()
    body = b"x\0\0" + folded if kind == b"zTXt" else b"x\0\1\0\0\0" + folded
    rows = b"".join(b"\0" + row.tobytes() for row in FACE)
    photo = png(32, 32, rows, 8, 2, chunk(kind, body))
    decoded = decode(photo)
    assert np.array_equal(decoded.pixels, FACE)
    assert kind.decode() in decoded.notes[0]
    assert peak_bytes(lambda: decode(photo), torch.device("cpu")) < 100_000_000
