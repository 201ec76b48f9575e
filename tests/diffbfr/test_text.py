"""Tables of plain text line up."""

from diffbfr.text import format_columns


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    rows = [("name", "n", ""), ("a", "5", "ok"), ("long name", "1234", "")]
    assert format_columns(rows, (False, True)) == ("name          n\na             5  ok\nlong name  1234")
    assert format_columns(rows) == "name       n\na          5     ok\nlong name  1234"
    assert format_columns([]) == ""
