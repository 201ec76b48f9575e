"""An archive as people have them: damaged, hostile, oddly named, doubled; each input ends as what it is."""

import hashlib
import os
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
from tests.diffbfr.faces.dots import draw
from tests.pipelines import poison
from tests.pipelines.auditor import audit
from tests.pipelines.dot_photos import SCALE, dot_detector, encoded, photo_of_dots, whole_options
from tests.pipelines.fake_cascade import FakeModel

GOOD, COPIES, CROWD = 120, 32, 200
PATIENCE_S = 2.0
"""The time limit of the endless photo; the others keep theirs."""
ODD_NAMES = (
    "naïve – Größe 写真.png",
    f"{'n' * 250}.png",
    "a folder\nof two lines/ leading and trailing .png",
    "-rf.png",
    "%2e%2e%2fpasswd.png",
    "quotes ' \" ` $(reboot) ; &.png",
    "back\\slash: the * and ?.png",
    "CON.png",
    "e\u0301 is no é.png",
    "\u202egnp.right to left.png",
    "two.dots..png",
    "no suffix",
)


def crowd() -> NDArray[np.uint8]:
    """A photo of 200 faces."""
    photo = np.random.default_rng(0).integers(100, 140, (10 * 76 + 20, 20 * 76 + 20, 1), dtype=np.uint8)
    photo = np.ascontiguousarray(np.repeat(photo, 3, axis=2))
    for number in range(CROWD):
        draw(photo, Similarity(SCALE, 0.0, 20.0 + 76 * (number % 20), 10.0 + 76 * (number // 20)))
    return photo


def black_png(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel."""
    ihdr = struct.pack(">II5B", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + width // 8)), 1)
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", ihdr), (b"IDAT", rows), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def poison_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are read by `poison`, in real child processes; the endless one is waited for a short time."""
    run = whole_input.run_sandboxed

    def impatient(
        function: Callable[..., Any], data: bytes, *words: Any, seconds: float, **options: Any
    ) -> Any:
        is_endless = data.endswith(poison.MARKS["endless"])
        return run(function, data, *words, seconds=PATIENCE_S if is_endless else seconds, **options)

    monkeypatch.setattr(whole_input, "run_sandboxed", impatient)
    monkeypatch.setattr(whole_input, "read_whole", poison.read_whole)


@pytest.mark.slow
def test_a_mixed_archive_ends_with_exact_statuses_and_no_mate_is_affected(
    tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_readers(monkeypatch)
    clean, mixed = tmp_path / "clean", tmp_path / "mixed"
    clean.mkdir()
    (mixed / "a folder\nof two lines").mkdir(parents=True)
    names = [f"{number:03d}.png" for number in range(GOOD)]
    names[3 : 3 + 7 * len(ODD_NAMES) : 7] = ODD_NAMES
    expected: dict[str, tuple[str, str]] = {}
    for number, name in enumerate(names):
        faces = number % 3
        photo = encoded(photo_of_dots(number, faces, 84, 40 + 75 * faces), "PNG")
        (clean / f"{number:03d}.png").write_bytes(photo)
        (mixed / name).write_bytes(photo)
        expected[name] = ("restored", "") if faces else ("no_face", "no_face")
    for number in range(COPIES):
        copy = f"\U0001f600 copy {number:02d}.png"  # the last names of the listing
        (mixed / copy).write_bytes((mixed / names[number]).read_bytes())
        expected[copy] = ("duplicate", expected[names[number]][1])
    good = encoded(photo_of_dots(999, 1), "PNG")
    for name, data, reason in (
        ("cut.png", good[: len(good) // 2], "truncated"),
        ("flipped.png", good[:500] + bytes([good[500] ^ 255]) + good[501:], "corrupt"),
        ("crash.png", good + poison.MARKS["crash"], "crashed"),
        ("endless.png", good + poison.MARKS["endless"], "timed_out"),
        ("200 megapixels.png", black_png(20_000, 10_000), "too_many_pixels"),
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
    for row in (rows[name] for name, (status, _) in expected.items() if status == "duplicate"):
        made = (tmp_path / "out" / row.output).read_bytes()
        assert hashlib.sha256(made).hexdigest() == rows[row.duplicate_of].output_sha256
    assert audit(mixed, tmp_path / "out") == []
    assert not [name for _, _, files in os.walk(tmp_path / "out") for name in files if "tmp" in name]
