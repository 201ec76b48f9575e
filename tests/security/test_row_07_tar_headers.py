"""Hostile headers of a tar end in one line within a second, whatever the version of Python."""

import io
import struct
import tarfile
import time
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from diffbfr.shards.external_tars import index_tars
from diffbfr.shards.schema import ShardDamagedError
from pipelines.sources import PhotoUnreadableError, open_source
from tests.pipelines.deadline import deadline

END = bytes(1024)


def header(name: str = "a.png", size: int = 0, kind: bytes = b"0", raw_size: bytes = b"") -> bytes:
    """A header with a right checksum, so that only what it says is wrong."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    if raw_size:
        block[124:136] = raw_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(data: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", len(data), kind) + data + bytes(-len(data) % 512)


def negative(size: int) -> bytes:
    return (size % 256**12).to_bytes(12, "big")


DIGITS = b"9" * 500_000
HOSTILE = {
    "size -512": header(raw_size=negative(-512)) + END,
    "size -1024 of the second": header("b.png") + header(raw_size=negative(-1024)) + END,
    "size of 2^95": header(raw_size=b"\x80" + b"\xff" * 11) + END,
    "size of letters": header(raw_size=b"xxxxxxxxxxx\0") + END,
    "pax of digits": pax(DIGITS) + header() + END,
    "pax of spaces": pax(b" " * 500_000) + header() + END,
    "pax of digits and a space": pax(DIGITS + b" a=b\n") + header() + END,
    "global pax of digits": pax(DIGITS, b"g") + pax(DIGITS, b"X") + header() + END,
    "pax without an end": pax(b"30 path=a.png\n") + header() + END,
    "pax of length 0": pax(b"0 a=b\n" * 1000) + header() + END,
    "pax of length -5": pax(b"-5 a=b\n") + header() + END,
    "pax size negative": pax(b"13 size=-512\n") + header() + END,
    "pax size of digits": pax(b"100011 size=" + b"9" * 100_000 + b"\n") + header() + END,
    "pax of 8 GB": header("pax", 0, b"x", b"77777777777\0") + END,
    "long name of 8 GB": header("long", 0, b"L", b"77777777777\0") + END,
    "pax sparse of digits": pax(b"100029 GNU.sparse.realsize=" + b"9" * 100_000 + b"\n") + header() + END,
    "old sparse that never ends": header("s.png", 0, b"S")[:482] + b"\1" + bytes(29) + END,
    "a folder of -512": header("d/", kind=b"M", raw_size=negative(-512)) + END,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_one_line_within_a_second(tmp_path: Path, what: str) -> None:
    path = tmp_path / "column" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(HOSTILE[what])
    started = time.process_time()
    with deadline(), pytest.raises(UsageError, match=r"expected a (whole|plain, uncompressed) tar") as caught:
        list(open_source(path, every_file=True).refs())
    assert "\n" not in str(caught.value)
    with deadline(), pytest.raises(ShardDamagedError):
        index_tars(tmp_path, "column")
    assert time.process_time() - started < 1


def test_many_extended_headers_cost_linear_time(tmp_path: Path) -> None:
    def seconds(number: int) -> float:
        (tmp_path / "a.tar").write_bytes(pax(b"14 path=a.png\n") * number + header() + END)
        started = time.process_time()
        assert [ref.name for ref in open_source(tmp_path / "a.tar").refs()] == ["a.png"]
        return time.process_time() - started

    few, many = min(seconds(100) for _ in range(2)), seconds(800)
    assert many < 24 * few + 0.3


@pytest.mark.parametrize(
    "sparse_map",
    ["0,99999999999999", "-5,1", "0,1,0", "600,1,0,1", "0,1," * 70_000 + "0,1", "99999999999999999999,1"],
)
def test_a_sparse_member_with_a_hostile_map_is_one_row(tmp_path: Path, sparse_map: str) -> None:
    def record(key: str, value: str) -> bytes:
        body = f" {key}={value}\n".encode()
        length = len(body) + len(str(len(body) + 7))
        while len(str(length)) + len(body) != length:
            length += 1
        return str(length).encode() + body

    records = record("GNU.sparse.size", "1000") + record("GNU.sparse.map", sparse_map)
    tar = (
        pax(records)
        + header("s.png", 5)
        + b"12345".ljust(512, b"\0")
        + header("z.png", 3)
        + b"abc".ljust(512, b"\0")
    )
    (tmp_path / "a.tar").write_bytes(tar + END)
    source = open_source(tmp_path / "a.tar")
    sparse, plain = source.refs()
    with deadline(), pytest.raises(PhotoUnreadableError, match=r"s\.png in .* cannot be read"):
        source.read(sparse)
    assert source.read(plain) == b"abc"


def test_a_sparse_member_that_claims_an_exabyte_is_one_row(tmp_path: Path) -> None:
    member = bytearray(header("s.png", 0, b"S"))
    member[483:495] = struct.pack(">BxxxQ", 0x80, 1 << 60)
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member)
    (tmp_path / "a.tar").write_bytes(bytes(member) + END)
    source = open_source(tmp_path / "a.tar")
    (ref,) = source.refs()
    with deadline(), pytest.raises(PhotoUnreadableError, match="at most 536870912 are read"):
        source.read(ref)


def test_a_compressed_tar_is_not_unpacked(tmp_path: Path) -> None:
    """A bomb of zeros would be unpacked by whatever opens it."""
    for suffix, mode in ((".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz"), (".tar", "w:gz")):
        with tarfile.open(tmp_path / f"a{suffix}", mode) as archive:  # type: ignore[call-overload]
            info = tarfile.TarInfo("a.png")
            info.size = 1 << 20
            archive.addfile(info, io.BytesIO(bytes(1 << 20)))
        with deadline(), pytest.raises(UsageError, match="expected a plain, uncompressed tar"):
            open_source(tmp_path / f"a{suffix}")
