"""Pages of a listing while others write, and pages that were altered on the way."""

from collections.abc import Sequence
from typing import Any

import pytest

from pipelines import storage
from pipelines.storage.s3 import list_keys

Names = Sequence[str]


class Pages:
    """A client whose listings are these, one after the other."""

    def __init__(self, *readings: Names) -> None:
        self._readings = list(readings)

    def call_s3(self, name: str, **options: Any) -> dict[str, Any]:
        assert name == "list_objects_v2"
        rows = [{"Key": key, "Size": 1, "ETag": '"e"'} for key in self._readings.pop(0)]
        return {"Contents": rows, "IsTruncated": False}


def listed(*readings: Names) -> list[str]:
    return [key for key, _, _ in list_keys(Pages(*readings), "bucket", "p")]  # type: ignore[arg-type]


def test_the_first_two_alike_are_the_page() -> None:
    assert listed("ab", "ab") == ["a", "b"]
    assert listed("ab", "abc", "ab") == ["a", "b"]


def test_a_page_that_grows_at_every_reading_is_what_came_twice() -> None:
    assert listed("", "a", "ab", "abc", "abcd") == ["a", "b", "c"]
    assert listed("d", "cd", "bcd", "abcd", "abcde") == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "readings",
    [
        ("abc", "abX", "aYc", "Zbc", "abW"),  # another name is altered each time
        ("abA", "abB", "abC", "abD", "abE"),  # the same one, each time
        ("a", "b", "c", "d", "e"),
        ("abc", "abcd", "abcde", "abcdef", "ab"),  # one went missing
    ],
)
def test_pages_that_are_altered_are_refused(readings: Sequence[str]) -> None:
    with pytest.raises(storage.TransportError, match="each time with other bytes"):
        listed(*readings)
