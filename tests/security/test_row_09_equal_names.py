"""Names that are equal, or equal after mending, cost time linear in their number, all the way to the ledger."""

import io
import struct
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pipelines.cluster import Cluster
from pipelines.dataset.shard_plan import split_listing
from pipelines.flows.restore_plan import plan_restore
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.sources import open_source
from tests.pipelines.deadline import deadline

NAMES: dict[str, Callable[[int], str]] = {
    "one name": lambda number: "a.png",
    "dots": lambda number: "./" * (number % 100) + "a.png",
    "numbers that are taken": lambda number: "a.png" if number % 2 else f"a.png#{number}",
    "letters of two cases": lambda number: (
        f"{number % 1024:010b}".replace("0", "k").replace("1", "K") + ".png"
    ),
    "accents": lambda number: ("\u0061\u0301.png", "\u00e1.png")[number % 2],
    "backslashes": lambda number: f"{number % 1024:010b}".replace("0", "/").replace("1", "\\") + "a.png",
    "system folders": lambda number: f"{number}/@eaDir/a.png" if number else "a.png",
}


def write_zip(path: Path, names: Iterable[str]) -> Path:
    """Write an index whose entries all have one empty member; `zipfile` would be slow with equal names."""
    body = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    index, number = bytearray(), 0
    for name in names:
        raw, number = name.encode(), number + 1
        fields = (b"PK\1\2", 20, 20, 0x800, 0, 0, 0, 0, 0, 0)
        index += struct.pack("<4s6H3L5H2L", *fields, len(raw), 0, 0, 0, 0, 0, 0) + raw
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number % 65536, number % 65536, len(index), len(body), 0)
    path.write_bytes(body + bytes(index) + end)
    return path


def seconds(path: Path, cluster: Cluster) -> float:
    started = time.process_time()
    source = open_source(path, every_file=True)
    refs = list(source.refs())
    assert len({ref.name for ref in refs}) == len(refs)
    photos = [ref for ref in refs if not ref.skipped]
    with ArchiveIndex() as index:
        index.list_photos(refs)
        index.choose_current()
        plan_restore(source, index, "", cluster)
        outputs = {output for page in index.to_restore(1000) for _, output in page}
        assert len(outputs) == index.num_left() == len(photos)
    assert sum(map(len, split_listing(iter(photos), 1000))) == len(photos)
    return time.process_time() - started


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_a_zip_cost_linear_time(
    tmp_path: Path, kind: str, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the sizes of all members are equal, so that reading them is no part of what is measured
    monkeypatch.setattr("pipelines.flows.restore_plan._find_duplicates", lambda *_: None)
    few = write_zip(tmp_path / "few.zip", map(NAMES[kind], range(250)))
    many = write_zip(tmp_path / "many.zip", map(NAMES[kind], range(2000)))
    with deadline(60):
        least = min(seconds(few, serial) for _ in range(3))
        assert seconds(many, serial) < 24 * least + 0.3  # 8 times the names; quadratic would be 64


@pytest.mark.slow
def test_five_thousand_members_of_one_name_are_numbered(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", ("a.png" for _ in range(5_000)))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(5_000):
            archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    for name in ("a.zip", "a.tar"):
        with deadline(60):
            refs = list(open_source(tmp_path / name).refs())
        assert {ref.name for ref in refs} == {"a.png"} | {f"a.png#{number}" for number in range(2, 5_001)}
