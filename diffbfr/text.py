"""Text for people: what may be shown of names and addresses that others chose, and tables of aligned columns.

`shown` is the one rule for everything that is printed or written into a page. A control character becomes its
escape, so that a file name can neither write to a terminal (OSC 52 sets its clipboard) nor reorder a line
(U+202E), and a password in an address becomes `***`.
"""

import re
from collections.abc import Sequence
from typing import Final

CONTROLS: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 with escape and line breaks, delete, C1 with its one-byte CSI and OSC
    "\xad\u061c\u180e\u200b\u200e\u200f"  # invisible: soft hyphen, zero width space, direction marks
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # line breaks, embeddings, overrides and isolates
    "\ud800-\udfff"  # bytes of a name that are not UTF-8
    "\U000e0000-\U000e0fff"  # tags, which are invisible letters
    "]"
)
"""Characters that are not shown as themselves. Joiners (U+200C, U+200D) stay: words and emoji need them."""
_MASK: Final = "***"
_VALUE: Final = r"""(?:'[^']*'|"[^"]*"|[^\s&;,'"<>]+)"""
_USER_AND_PASSWORD: Final = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]{0,31}://)"
    r"(?:(?!\[)[^\s/?#@]{0,256}:(?!\d{0,6}(?:[/?#]|$))[^\s@]{0,2048}|[^\s/?#]{0,2048})@(?:[^\s/?#@]{0,256}@){0,8}"
)
"""Everything before the @ of an address; a password may hold `/`, and a port is none."""
_QUOTED_USER_AND_PASSWORD: Final = re.compile(r"(?i)(%3a%2f%2f)[^\s&/@]{0,512}?%40")
_PARAMETER: Final = re.compile(
    r"(?i)((?:^|[?&;,\s'\"])[\w.%-]{0,48}?"
    r"(?:token|secret|passw(?:or)?d|passphrase|pwd|signature|credential|api[_-]?key|access[_-]?key(?:_?id)?)"
    rf"[\w.%-]{{0,48}}\s?=\s?){_VALUE}"
)
_SHORT_PARAMETER: Final = re.compile(rf"(?i)([?&;](?:sig|key|auth|pass)=){_VALUE}")
_HEADER: Final = re.compile(rf"(?i)(\bauthorization['\"]?\s?[:=]\s?['\"]?(?:basic|bearer|token)\s){_VALUE}")
# every repetition above has a limit, so that a long name costs no more than its length
_PATTERNS: Final = (_USER_AND_PASSWORD, _QUOTED_USER_AND_PASSWORD, _PARAMETER, _SHORT_PARAMETER, _HEADER)
_HINTS: Final = re.compile(r"[@=]|%40|(?i:authorization)")


def shown(text: str, *, keep: str = "") -> str:
    """Text as it may be printed on one line: controls as escapes, and no passwords; `keep` stays as it is."""
    return printable(without_secrets(text), keep=keep)


def printable(text: str, *, keep: str = "") -> str:
    r"""Write control, direction and other invisible characters as `\n`, `\x1b`, `\u202e`, except `keep`."""
    if text.isprintable():
        return text
    return CONTROLS.sub(lambda found: _escape(found[0], keep), text)


def without_secrets(text: str) -> str:
    """Replace passwords by `***`: user and password of an address, signatures and tokens in its query.

    `s3://KEY:SECRET@bucket` becomes `s3://***@bucket`, `?X-Amz-Signature=5a1e` `?X-Amz-Signature=***`.
    """
    if not _HINTS.search(text):
        return text
    for pattern in _PATTERNS:
        at = "@" if pattern is _USER_AND_PASSWORD else "%40" if pattern is _QUOTED_USER_AND_PASSWORD else ""
        text = pattern.sub(rf"\g<1>{_MASK}{at}", text)
    return text


def format_columns(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Lay out rows of equal length in columns as wide as their longest cell, two spaces apart.

    Column i is aligned to the right if `right[i]` is true; columns beyond the end of `right` to the left. A
    cell is one line (`shown`).
    """
    if not rows:
        return ""
    cells = [tuple(map(shown, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [*right, *[False] * (len(widths) - len(right))]
    lines = []
    for row in cells:
        parts = zip(row, widths, aligned, strict=True)
        lines.append("  ".join(c.rjust(width) if far else c.ljust(width) for c, width, far in parts).rstrip())
    return "\n".join(lines)


def _escape(character: str, keep: str) -> str:
    return character if character in keep else character.encode("unicode_escape").decode()
