"""Reading of `ffhq-dataset-v2.json`: a quarter of a gigabyte of JSON, parsed as a stream of events."""

import re
from collections.abc import Iterator
from typing import IO, Any, Final

import ijson

_FIELDS: Final = frozenset(("file_path", "file_md5", "pixel_md5"))
_MD5: Final = re.compile(r"[0-9a-f]{32}|")
_STARTS: Final = frozenset(("start_map", "start_array"))
_ENDS: Final = frozenset(("end_map", "end_array"))
_MAX_DEPTH: Final = 32
_MAX_TOKEN_BYTES: Final = 1 << 22
_MAX_DIGITS: Final = 1000
_LONG_NUMBER: Final = re.compile(rb"[0-9]{%d}" % (_MAX_DIGITS + 1))


def index_rows(file: IO[bytes]) -> Iterator[tuple[str, str, str]]:
    """Yield (path, file MD5, pixel MD5) of each object with a `file_path`: image, thumbnail, original photo.

    An absent digest is "". ValueError if the file is not one whole JSON object, has an entry with other
    digests, or is nested more than 32 levels deep. Memory does not grow with the file.
    """
    source = _BoundedReader(file)
    stack: list[dict[str, Any] | None] = []  # the fields of each open object, None for an open list
    key = ""
    try:
        for event, value in ijson.basic_parse(source, use_float=True):
            source.waiting_bytes = 0
            if not stack and event != "start_map":
                raise ValueError("it is no JSON object")
            if event == "map_key":
                key = value
            elif event in _ENDS:
                fields = stack.pop()
                if fields and "file_path" in fields:
                    yield _row(fields)
            else:
                parent = stack[-1] if stack else None
                if parent is not None and key in _FIELDS:
                    parent[key] = value  # None for a list or an object, which `_row` refuses
                if event in _STARTS:
                    stack.append({} if event == "start_map" else None)
                    if len(stack) > _MAX_DEPTH:
                        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
    except ijson.JSONError as error:
        raise ValueError(" ".join(str(error).partition("\n")[0].split())) from error


class _BoundedReader:
    """What ijson reads from. Its C parser has no limits of its own, so two are kept here.

    A string or a gap of more than 4 MiB is refused before all of it is held, and a number of more than 1000
    digits before it is parsed: ijson 3.6 crashes the process on more than Python converts (4300).
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.waiting_bytes = 0
        self._file = file
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; ValueError if they exceed a limit."""
        data = self._file.read(size)
        self.waiting_bytes += len(data)
        if self.waiting_bytes > _MAX_TOKEN_BYTES:
            raise ValueError(f"it has more than {_MAX_TOKEN_BYTES} bytes without a value")
        if _LONG_NUMBER.search(self._tail + data):
            raise ValueError(f"it has a number of more than {_MAX_DIGITS} digits")
        self._tail = data[-_MAX_DIGITS:]
        return data


def _row(fields: dict[str, Any]) -> tuple[str, str, str]:
    path, file_md5, pixel_md5 = fields["file_path"], fields.get("file_md5", ""), fields.get("pixel_md5", "")
    digests = [file_md5, pixel_md5]
    if not isinstance(path, str) or not all(isinstance(md5, str) and _MD5.fullmatch(md5) for md5 in digests):
        raise ValueError(f"{path!r} has the digests {digests}, which are no MD5s")
    return path, file_md5, pixel_md5
