"""A zip member costs what its index declares and no more, and one that lies is one damaged row."""

import bz2
import io
import lzma
import struct
import tracemalloc
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cluster import Cluster
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.sources import PhotoUnreadableError, open_source
from tests.pipelines.deadline import deadline
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import encode, face

STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14
PHOTO = encode(face(0, 24), "PNG")
REAL_BYTES = 48 << 20


@dataclass(frozen=True)
class Member:
    """A member as its index describes it; `packed` is what really lies in the archive."""

    name: str
    packed: bytes
    num_bytes: int
    crc: int
    method: int = DEFLATED
    packed_bytes: int | None = None
    header: int | None = None


def write_zip(path: Path, *members: Member) -> Path:
    """Write a zip whose index has 64-bit sizes and offsets, whatever they say."""
    body, index = io.BytesIO(), io.BytesIO()
    for member in members:
        name, place = member.name.encode(), body.tell()
        body.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, member.method, 0, 0, 0, 0, 0, len(name), 0))
        body.write(name + member.packed)
        packed_bytes = len(member.packed) if member.packed_bytes is None else member.packed_bytes
        header = place if member.header is None else member.header
        extra = struct.pack("<2H3Q", 1, 24, member.num_bytes, packed_bytes, header)
        entry = (b"PK\1\2", 45, 45, 0, member.method, 0, 0, member.crc, 2**32 - 1, 2**32 - 1)
        index.write(struct.pack("<4s6H3L5H2L", *entry, len(name), len(extra), 0, 0, 0, 0, 2**32 - 1))
        index.write(name + extra)
    end = (b"PK\5\6", 0, 0, len(members) % 65536, len(members) % 65536, index.tell(), body.tell(), 0)
    path.write_bytes(body.getvalue() + index.getvalue() + struct.pack("<4s4H2LH", *end))
    return path


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def pack_lzma(data: bytes, dictionary_bytes: int = 1 << 16) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}]
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=filters)
    return struct.pack("<2BHBL", 9, 4, 5, 93, dictionary_bytes) + packed


def photo(name: str) -> Member:
    return Member(name, deflate(PHOTO), len(PHOTO), zlib.crc32(PHOTO))


PACKED = {
    DEFLATED: deflate(bytes(REAL_BYTES)),
    BZIP2: bz2.compress(bytes(REAL_BYTES)),
    LZMA: pack_lzma(bytes(REAL_BYTES)),
}


@pytest.mark.parametrize("declared", [100, 900_000])
@pytest.mark.parametrize("method", [DEFLATED, BZIP2, LZMA])
def test_a_member_that_unpacks_to_more_than_it_declares_is_unreadable_and_small(
    tmp_path: Path, method: int, declared: int
) -> None:
    liar = Member("liar.png", PACKED[method], declared, zlib.crc32(bytes(declared)), method)
    source = open_source(write_zip(tmp_path / "a.zip", liar))
    (ref,) = source.refs()
    tracemalloc.start()
    try:
        with (
            deadline(),
            pytest.raises(PhotoUnreadableError, match=f"unpacks to more than the {declared} bytes"),
        ):
            source.read(ref)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * declared + (3 << 20)  # bzip2 unpacks 900 kB at a time


@pytest.mark.parametrize("method", [STORED, DEFLATED, BZIP2, LZMA])
def test_a_member_that_unpacks_to_less_than_it_declares_is_unreadable(tmp_path: Path, method: int) -> None:
    pack = {STORED: bytes, DEFLATED: deflate, BZIP2: bz2.compress, LZMA: pack_lzma}[method]
    member = Member("short.png", pack(PHOTO), len(PHOTO) + 1, zlib.crc32(PHOTO), method)
    source = open_source(write_zip(tmp_path / "a.zip", member))
    with pytest.raises(PhotoUnreadableError, match="ends 1 bytes before the size"):
        source.read(next(source.refs()))


def test_the_dictionary_of_lzma_is_no_larger_than_the_content(tmp_path: Path) -> None:
    """The decoder of lzma would reserve the 4 GiB that a header of nine bytes asks for."""
    member = Member("a.png", pack_lzma(PHOTO, 2**32 - 1), len(PHOTO), zlib.crc32(PHOTO), LZMA)
    source = open_source(write_zip(tmp_path / "a.zip", member))
    tracemalloc.start()
    try:
        assert source.read(next(source.refs())) == PHOTO
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


LIES = {
    "size of 2^64 - 2": Member("lie.png", b"", 2**64 - 2, 0),
    "size of 2^63": Member("lie.png", deflate(PHOTO), 2**63, 0),
    "packed size of 2^64 - 2": Member("lie.png", b"", 100, 0, packed_bytes=2**64 - 2),
    "packed size beyond the end": Member("lie.png", b"", 100, 0, packed_bytes=1 << 20),
    "header beyond the end": Member("lie.png", b"x", 1, 0, header=2**64 - 3),
    "gigabytes in a kilobyte": Member("lie.png", deflate(PHOTO), 400 << 20, 0),
    "properties of lzma": Member("lie.png", struct.pack("<2BHBL", 9, 4, 5, 255, 1 << 16), 10, 0, LZMA),
    "unknown compression": Member("lie.png", b"abc", 3, 0, 97),
    "all bytes of the archive": Member("lie.png", b"", 10, 0, STORED, packed_bytes=100, header=0),
    "wrong CRC": Member("lie.png", deflate(PHOTO), len(PHOTO), 1),
}


@pytest.mark.slow
def test_a_lie_in_the_index_is_one_row_and_its_neighbours_are_restored(
    tmp_path: Path, serial: Cluster
) -> None:
    members = [photo("first.png")]
    members += [Member(**{**vars(lie), "name": f"lie {what}.png"}) for what, lie in LIES.items()]
    path = write_zip(tmp_path / "a.zip", *members, photo("last.png"))
    with deadline():
        options = RestoreOptions(aligned=True)
        report = restore_archive(str(path), str(tmp_path / "out"), FakeModel(), options, serial)
    statuses = {row.name: (row.status, row.reason) for row in report.rows}
    expected = {f"lie {what}.png": ("quarantined", "unreadable") for what in LIES}
    assert statuses == {"first.png": ("restored", ""), "last.png": ("duplicate", ""), **expected}
    assert all(row.message for row in report.rows if row.status == "quarantined")


def test_members_that_share_their_bytes_are_read_as_often_as_there_are_bytes(tmp_path: Path) -> None:
    """A thousand entries for the same megabyte would make a gigabyte of a small archive."""
    content = bytes(range(256)) * 256
    shared = Member("0.png", content, len(content), zlib.crc32(content), STORED)
    others = [
        Member(f"{n}.png", b"", len(content), shared.crc, STORED, len(content), 0) for n in range(1, 40)
    ]
    source = open_source(write_zip(tmp_path / "a.zip", shared, *others))
    problems = []
    for ref in source.refs():
        try:
            source.read(ref)
        except PhotoUnreadableError as error:
            problems.append(str(error))
    assert len(problems) == 38  # twice the bytes of the archive
    assert all("overlaps with other members" in problem for problem in problems)


def test_what_zipfile_writes_is_read_whatever_it_is_packed_with(tmp_path: Path) -> None:
    white = bytes([255]) * (3 << 20)  # deflate packs it 1000 times
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for method in (STORED, DEFLATED, BZIP2, LZMA):
            archive.writestr(f"{method}.png", PHOTO, method)
        archive.writestr("white.bmp", white, DEFLATED)
    source = open_source(tmp_path / "a.zip")
    contents = {ref.name: source.read(ref) for ref in source.refs()}
    assert contents.pop("white.bmp") == white
    assert set(contents.values()) == {PHOTO}


@pytest.mark.parametrize("field", [20, 24, 42])
def test_an_entry_without_its_64_bit_field_is_one_damaged_row(tmp_path: Path, field: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad.png", PHOTO)
        archive.writestr("good.png", PHOTO + b" ")
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\1\2")
    data[entry + field : entry + field + 4] = b"\xff" * 4  # "see the extra field", and there is none
    path.write_bytes(data)
    source = open_source(str(path))
    bad, good = source.refs()
    with pytest.raises(PhotoUnreadableError, match=r"bad\.png"):
        source.read(bad)
    assert source.read(good) == PHOTO + b" "


def test_a_flagged_name_that_is_no_utf8_hides_no_other_member(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é.png", PHOTO)
        archive.writestr("good.png", PHOTO)
    path.write_bytes(path.read_bytes().replace("é.png".encode(), b"\xff\xfe.png"))
    source = open_source(str(path))
    assert [ref.name for ref in source.refs()] == ["%ff%fe.png", "good.png"]
    assert [source.read(ref) for ref in source.refs()] == [PHOTO, PHOTO]
