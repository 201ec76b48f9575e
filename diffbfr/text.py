"""Plain text for terminals: tables of aligned columns."""

from collections.abc import Sequence


def format_columns(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Lay out rows of equal length in columns as wide as their longest cell, two spaces apart.

    Column i is aligned to the right if `right[i]` is true; columns beyond the end of `right` to the left.
    """
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [*right, *[False] * (len(widths) - len(right))]
    lines = []
    for row in rows:
        cells = zip(row, widths, aligned, strict=True)
        lines.append("  ".join(c.rjust(width) if far else c.ljust(width) for c, width, far in cells).rstrip())
    return "\n".join(lines)
