"""A sealed record comes back as it was written, or not at all."""

import json
from pathlib import Path

import pytest

from diffbfr.shards import ShardDamagedError
from pipelines import storage
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json

RECORD = {"name": "é", "n": 3, "share": 0.1, "rows": [{"a": [1, None]}]}


@pytest.mark.parametrize("indent", [1, None])
def test_a_record_comes_back_as_it_was_written(tmp_path: Path, indent: int | None) -> None:
    assert write_checksummed_json(tmp_path / "x.json", RECORD, indent=indent)
    assert read_checksummed_json(tmp_path / "x.json") == RECORD


def test_create_only_has_one_winner(tmp_path: Path) -> None:
    assert write_checksummed_json(tmp_path / "x.json", RECORD, create_only=True)
    assert not write_checksummed_json(tmp_path / "x.json", {"other": 1}, create_only=True)
    assert read_checksummed_json(tmp_path / "x.json") == RECORD


@pytest.mark.parametrize("indent", [1, None])
def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path, indent: int | None) -> None:
    place = tmp_path / "x.json"
    write_checksummed_json(place, RECORD, indent=indent)
    whole = place.read_bytes()
    noticed = 0
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        place.write_bytes(damaged)
        try:
            found = read_checksummed_json(place)
        except ShardDamagedError:
            noticed += 1
        else:
            assert found == RECORD  # one kind of space became another
    assert noticed > len(whole) * 7


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    place = tmp_path / "x.json"
    write_checksummed_json(place, RECORD)
    whole = place.read_bytes()
    for end in range(len(whole) - 1):  # the last byte is a newline
        place.write_bytes(whole[:end])
        with pytest.raises(ShardDamagedError, match=r"x\.json is damaged"):
            read_checksummed_json(place)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{}", b'{"seal": 3}', b"[" * 100_000, json.dumps(RECORD).encode()]
)
def test_what_has_no_seal_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ShardDamagedError, match="remove it and run the same command again"):
        read_checksummed_json(tmp_path / "x.json")


def test_a_bit_that_flips_on_the_way_from_s3_is_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_checksummed_json(tmp_path / "record.json", {"a": 1})
    whole = (tmp_path / "record.json").read_bytes()
    answers = [whole.replace(b"1", b"3", 1), whole[:-9], whole]
    monkeypatch.setattr(storage, "read_bytes", lambda _: answers.pop(0))
    assert read_checksummed_json("s3://bucket/record.json") == {"a": 1}
    answers[:] = [whole[:-9]] * 3
    with pytest.raises(ShardDamagedError):
        read_checksummed_json("s3://bucket/record.json")


def test_a_record_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_checksummed_json(tmp_path / "x.json")
