"""An archive as people have them: damaged, hostile, oddly named, doubled; each input ends as what it is."""

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.faces.similarity import Similarity
from pipelines.cluster import Cluster
from pipelines.flows.restore_archive import restore_archive
from pipelines.restoration import whole_input
from pipelines.sources.sandbox import WorkerFailure
from tests.diffbfr.faces.dots import draw
from tests.pipelines.auditor import audit
from tests.pipelines.dot_photos import SCALE, dot_detector, encoded, find_dots, photo_of_dots, whole_options
from tests.pipelines.fake_cascade import FakeModel

GOOD, COPIES, CROWD = 40, 12, 200
CRASHES, ENDLESS = b"crashes the decoder", b"keeps the decoder for ever"


def crowd() -> NDArray[np.uint8]:
    """A photo of 200 faces."""
    photo = np.random.default_rng(0).integers(100, 140, (10 * 76 + 20, 20 * 76 + 20, 1), dtype=np.uint8)
    photo = np.ascontiguousarray(np.repeat(photo, 3, axis=2))
    for number in range(CROWD):
        draw(photo, Similarity(SCALE, 0.0, 20.0 + 76 * (number % 20), 10.0 + 76 * (number // 20)))
    return photo


def header_of(width: int, height: int) -> bytes:
    """A PNG of this size, with next to nothing behind its header."""
    ihdr = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", ihdr), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def fail_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two photos end their decoder, as the sandbox reports it."""
    run = whole_input.run_sandboxed

    def failing(function: Callable[..., Any], data: bytes, *arguments: Any, **options: Any) -> Any:
        if CRASHES in data:
            return WorkerFailure("crashed", "signal 11")
        if ENDLESS in data:
            return WorkerFailure("timed_out", "it was not done after 300 s")
        return run(function, data, *arguments, **options)

    monkeypatch.setattr(whole_input, "run_sandboxed", failing)


@pytest.mark.slow
def test_a_mixed_archive_ends_with_exact_statuses_and_no_mate_is_affected(
    tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_dots(monkeypatch)
    fail_on_demand(monkeypatch)
    clean, mixed = tmp_path / "clean", tmp_path / "mixed"
    clean.mkdir()
    (mixed / "a folder\nof two lines").mkdir(parents=True)
    names = [f"{number:02d}.png" for number in range(GOOD)]
    names[3], names[7] = "naïve – Größe 写真.png", "n" * 250 + ".png"
    names[11] = "a folder\nof two lines/ leading and trailing .png"
    expected: dict[str, tuple[str, str]] = {}
    for number, name in enumerate(names):
        photo = encoded(photo_of_dots(number, number % 3), "PNG")
        (clean / f"{number:02d}.png").write_bytes(photo)
        (mixed / name).write_bytes(photo)
        expected[name] = ("restored", "") if number % 3 else ("no_face", "no_face")
    for number in range(COPIES):
        copy = f"z copy {number:02d}.png"
        (mixed / copy).write_bytes((mixed / names[number]).read_bytes())
        expected[copy] = ("duplicate", expected[names[number]][1])
    good = encoded(photo_of_dots(99, 1), "PNG")
    for name, data, reason in (
        ("cut.png", good[: len(good) // 2], "truncated"),
        ("crash.png", good + CRASHES, "crashed"),
        ("endless.png", good + ENDLESS, "timed_out"),
        ("200 megapixels.png", header_of(20_000, 10_000), "too_many_pixels"),
        ("letter.png", b"Dear all,", "not_an_image"),
    ):
        (mixed / name).write_bytes(data)
        expected[name] = ("quarantined", reason)
    (mixed / "crowd.png").write_bytes(encoded(crowd(), "PNG"))
    expected["crowd.png"] = ("restored", "")
    (mixed / "notes.txt").write_text("no photo")
    expected["notes.txt"] = ("skipped", "side_file")

    options = whole_options(dot_detector(tmp_path))
    alone = restore_archive(str(clean), str(tmp_path / "alone"), FakeModel(), options, serial)
    report = restore_archive(str(mixed), str(tmp_path / "out"), FakeModel(), options, serial)

    rows = {row.name: row for row in report.rows}
    assert {name: (row.status, row.reason) for name, row in rows.items()} == expected
    undisturbed = [row.output_sha256 for row in alone.rows]
    assert [rows[name].output_sha256 for name in names] == undisturbed
    assert rows["crowd.png"].num_faces == sum(face.photo == "crowd.png" for face in report.faces) == CROWD
    for name in (f"z copy {number:02d}.png" for number in range(COPIES)):
        made = (tmp_path / "out" / rows[name].output).read_bytes()
        assert hashlib.sha256(made).hexdigest() == rows[rows[name].duplicate_of].output_sha256
    assert audit(mixed, tmp_path / "out") == []
