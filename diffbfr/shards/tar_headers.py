"""Headers of a tar that anybody may have written, one after another, in time linear in the tar.

`tarfile` stops at the first empty block, so that it reads half of two tars joined by `cat`, and in older
versions of Python some headers keep it busy for ever (CVE-2025-8194, CVE-2024-6232). Here every header lies
behind the one before, extended headers are bounded, and whatever follows the end mark is read or refused.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol, runtime_checkable

Kind = Literal["file", "sparse", "folder", "hard link", "symbolic link", "special file"]

_BLOCK: Final = tarfile.BLOCKSIZE
_ZEROS: Final = bytes(_BLOCK)
_READ_BYTES: Final = 1 << 16
_MAX_EXTENDED_BYTES: Final = 1 << 20
_MAX_ZEROS: Final = 1 << 30
_MAX_DIGITS: Final = 20
_MAX_REAL_BYTES: Final = (1 << 63) - 1
_MAX_PIECES: Final = 1 << 16

_KINDS: Final[dict[bytes, Kind]] = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), "file"),
    tarfile.GNUTYPE_SPARSE: "sparse",
    tarfile.DIRTYPE: "folder",
    b"D": "folder",  # a folder in a dump of GNU tar, with its listing as content
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
}
_WITHOUT_CONTENT: Final = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
)
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG: Final = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_VOLUME_LABEL: Final = b"V"


@runtime_checkable
class SeekableFile(Protocol):
    """What is needed of a file, be it local or remote."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position."""
        ...

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, fewer only at the end."""
        ...


class TarDamagedError(ValueError):
    """The bytes are no whole tar; the message says what was found."""


@dataclass(frozen=True)
class TarEntry:
    """One member: its name, and where header and content lie.

    `num_bytes` is the size of the content, `stored_bytes` what it takes in the tar, which is less for a
    sparse member. `target` is the name that a link points to. Bytes that are not UTF-8 are surrogates.
    """

    name: str
    kind: Kind
    num_bytes: int
    header: int
    place: int
    stored_bytes: int
    target: str = ""
    pax: "_Pax" = field(default_factory=lambda: _Pax(), repr=False)


@dataclass
class _Pax:
    """What extended headers say about the next member; `pairs` are the pieces of a sparse one."""

    values: dict[str, str] = field(default_factory=dict)
    pairs: list[int] = field(default_factory=list)


def read_entries(file: SeekableFile, start: int = 0) -> Iterator[TarEntry]:
    """Yield the members from a header on, past every end mark; TarDamagedError if the tar is cut or damaged.

    A tar without an end mark was cut, even if its last member is whole.
    """
    num_bytes = file.seek(0, 2)
    position, extended, header, ended = start, _Pax(), start, False
    while True:
        block = _read(file, position, _BLOCK)
        if len(block) < _BLOCK or block == _ZEROS:
            if len(block) < _BLOCK and (not ended or block.strip(b"\0")):
                raise TarDamagedError("it ends without its end mark, so it was cut")
            if not block:
                return
            position, ended = _after_zeros(file, position), True
            header = position
            continue
        info = _parse(block, position, ended)
        ended = False
        content = position + _BLOCK
        if info.type not in _WITHOUT_CONTENT:
            _check_inside(content, info.size, num_bytes)
        if info.type in _LONG:
            key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            long = _read_extended(file, info, content)
            extended.values[key] = long.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif info.type in _PAX:
            _add_pax(extended, _read_extended(file, info, content))
        elif info.type not in (tarfile.XGLTYPE, _VOLUME_LABEL):
            entry = _entry(info, extended, header, position)
            if info.type == tarfile.GNUTYPE_SPARSE:
                pieces, place = _old_map(file, position, block)
                entry = replace(entry, num_bytes=_binary(block[483:495]), place=place, pax=_Pax(pairs=pieces))
            if not 0 <= entry.num_bytes <= _MAX_REAL_BYTES:
                raise TarDamagedError(f"the header at byte {position} has the size {entry.num_bytes}")
            _check_inside(entry.place, entry.stored_bytes, num_bytes)
            yield entry
            position, extended = entry.place + _padded(entry.stored_bytes), _Pax()
            header = position
            continue
        position = content + _padded(info.size)


def read_sparse(file: SeekableFile, entry: TarEntry) -> bytes:
    """Return the content of a sparse member, with zeros where nothing is stored.

    TarDamagedError unless the stored pieces lie one after another inside it.
    """
    numbers, place = _sparse_map(file, entry)
    if len(numbers) % 2 or len(numbers) > 2 * _MAX_PIECES:
        raise TarDamagedError(f"{entry.name} has a list of {len(numbers)} numbers for its stored pieces")
    content, end, left = bytearray(entry.num_bytes), 0, entry.place + entry.stored_bytes - place
    for offset, size in zip(numbers[::2], numbers[1::2], strict=True):
        if not size:
            continue
        if offset < end or size < 0 or offset + size > len(content) or size > left:
            raise TarDamagedError(f"{entry.name} stores {size} bytes at {offset}, outside of its content")
        content[offset : offset + size] = _read(file, place, size)
        end, left, place = offset + size, left - size, place + size
    return bytes(content)


def _parse(block: bytes, position: int, ended: bool) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if ended:
            raise TarDamagedError(f"what follows its end mark at byte {position} is no tar") from error
        raise TarDamagedError(f"there is no header at byte {position}") from error
    if block[257:265] == b"ustar  \0":  # GNU keeps times where ustar has the beginning of a name
        info.name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape").rstrip("/")
    return info


def _check_inside(place: int, size: int, num_bytes: int) -> None:
    """TarDamagedError unless a content lies inside the tar, so that the next header lies behind this one."""
    if size < 0:
        raise TarDamagedError(f"the content at byte {place} has the size {size}")
    if place + size > num_bytes:
        raise TarDamagedError(f"it ends {place + size - num_bytes} bytes inside a member, so it was cut")


def _entry(info: tarfile.TarInfo, extended: _Pax, header: int, position: int) -> TarEntry:
    """Return the member of a header, with what the extended headers before it say."""
    values = extended.values
    kind = _KINDS.get(info.type, "special file")
    name = values.get("GNU.sparse.name", values.get("path", info.name))
    stored = 0 if info.type in _WITHOUT_CONTENT else _number(values.get("size", str(info.size)))
    real = values.get("GNU.sparse.realsize", values.get("GNU.sparse.size"))
    if kind == "file" and real is not None:
        kind = "sparse"
    return TarEntry(
        name=name.rstrip("/") if kind == "folder" else name,
        kind=kind,
        num_bytes=_number(real) if kind == "sparse" and real is not None else stored,
        header=header,
        place=position + _BLOCK,
        stored_bytes=stored,
        target=values.get("linkpath", info.linkname),
        pax=extended,
    )


def _add_pax(extended: _Pax, data: bytes) -> None:
    """Add the records `<length> <key>=<value>` of an extended header, each of which tells where it ends."""
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + _MAX_DIGITS)
        length = int(data[at:space]) if space > at and data[at:space].isdigit() else 0
        end = at + length
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarDamagedError("an extended header has a record without an end")
        text = value.decode("utf-8", "surrogateescape")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            extended.pairs.append(_number(text))
        else:
            extended.values[key.decode("utf-8", "surrogateescape")] = text
        at = end


def _read_extended(file: SeekableFile, info: tarfile.TarInfo, place: int) -> bytes:
    if info.size > _MAX_EXTENDED_BYTES:
        raise TarDamagedError(
            f"an extended header has {info.size} bytes; at most {_MAX_EXTENDED_BYTES} are read"
        )
    return _read(file, place, info.size)


def _old_map(file: SeekableFile, position: int, block: bytes) -> tuple[list[int], int]:
    """Return the list of a member of type `S`, and where its content begins.

    Four pieces are in the header, 21 in each block that goes on with it.
    """
    numbers = [_binary(block[at : at + 12]) for at in range(386, 386 + 8 * 12, 12)]
    more, position = block[482], position + _BLOCK
    while more:
        block = _read(file, position, _BLOCK)
        if len(block) < _BLOCK:
            raise TarDamagedError("it ends inside the list of a sparse member, so it was cut")
        if len(numbers) <= 2 * _MAX_PIECES:
            numbers += [_binary(block[at : at + 12]) for at in range(0, 42 * 12, 12)]
        more, position = block[504], position + _BLOCK
    return numbers, position


def _sparse_map(file: SeekableFile, entry: TarEntry) -> tuple[list[int], int]:
    """Return offset and size of each stored piece in one list, and where the first piece lies."""
    values = entry.pax.values
    if "GNU.sparse.map" in values:
        return [_number(text) for text in values["GNU.sparse.map"].split(",")], entry.place
    if values.get("GNU.sparse.major") == "1":
        return _inline_map(file, entry)
    return entry.pax.pairs, entry.place


def _inline_map(file: SeekableFile, entry: TarEntry) -> tuple[list[int], int]:
    """Read the list that version 1.0 has before the content: a decimal number a line, their count first."""
    text = b""
    numbers: list[int] = []
    while not numbers or len(numbers) < 1 + 2 * numbers[0]:
        *lines, text = (text + _read(file, entry.place, _BLOCK)).split(b"\n")
        if not lines or len(numbers) > 2 * _MAX_PIECES:
            raise TarDamagedError(f"{entry.name} has no list of its stored pieces")
        numbers += [_number(line.decode("latin-1")) for line in lines if line.strip(b"\0")]
        entry = replace(entry, place=entry.place + _BLOCK)
    return numbers[1 : 1 + 2 * numbers[0]], entry.place


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise TarDamagedError(f"{text[:_MAX_DIGITS]!r} stands where a number should")
    return int(text)


def _binary(field: bytes) -> int:
    """Read a number of a header: octal digits, or big-endian if its first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip() or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise TarDamagedError("a header has something else where a number should stand")
    return int(digits, 8)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _after_zeros(file: SeekableFile, position: int) -> int:
    """Return the first block from a position on that is not empty, or where the file ends."""
    start = position
    while True:
        data = _read(file, position, _READ_BYTES)
        if rest := data.lstrip(b"\0"):
            return position + (len(data) - len(rest)) // _BLOCK * _BLOCK
        position += len(data)
        if not data:
            return position
        if position - start > _MAX_ZEROS:
            raise TarDamagedError(f"more than {_MAX_ZEROS} empty bytes follow its end mark")


def _read(file: SeekableFile, place: int, num_bytes: int) -> bytes:
    file.seek(place)
    return file.read(num_bytes)
