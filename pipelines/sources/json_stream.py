"""One large JSON object, a value at a time: FFHQ's index would take gigabytes if it were parsed whole."""

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any, Final

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_PIECE_CHARACTERS: Final = 1 << 18
_VALUE_CHARACTERS: Final = 1 << 22  # a longer one is taken for damage
_DECODER: Final = json.JSONDecoder()


def json_values(file: IO[bytes]) -> Iterator[Any]:
    """Yield the values of one JSON object, one at a time; ValueError if it is anything else, or not whole."""
    text = _Text(io.TextIOWrapper(file, "utf-8"))
    text.take("{")
    after = text.take("}") if text.look() == "}" else ","
    while after == ",":
        text.value()
        text.take(":")
        yield text.value()
        after = text.take(",}")
    if text.look():
        raise ValueError("something follows its end")


class _Text:
    """JSON in pieces: a look at the next character, and whole values."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file, self._text, self._at, self._ended = file, "", 0, False

    def look(self) -> str:
        """Return the next character that is no space and leave it there; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self, wanted: str) -> str:
        """Take the next character, which must be one of these."""
        found = self.look()
        if not found or found not in wanted:
            raise ValueError(
                f"it has {found!r} where {' or '.join(wanted)} should be" if found else "it ends too early"
            )
        self._at += 1
        return found

    def value(self) -> Any:
        """Take the next value."""
        self.look()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                if self._ended or len(self._text) - self._at > _VALUE_CHARACTERS:
                    raise
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        piece = self._file.read(_PIECE_CHARACTERS)
        self._text, self._at, self._ended = self._text[self._at :] + piece, 0, not piece
