"""Pictures are paired by name without suffix, and what does not pair is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.errors import UsageError
from pipelines.evaluation.pairing import pair_folders, read_picture


def folder(path: Path, *names: str) -> str:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path / name)
    return str(path)


def test_names_pair_without_suffix_and_in_subfolders(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", "b/2.png", "10.png", "1.png")
    b = folder(tmp_path / "b", "1.jpg", "10.webp", "b/2.png")
    c = folder(tmp_path / "c", "1.bmp", "10.bmp", "b/2.bmp")
    paired = pair_folders(a, b, c)
    assert [(pair.key, pair.restored.name, pair.reference.name) for pair in paired.pairs] == [
        ("1", "1.png", "1.jpg"),
        ("10", "10.png", "10.webp"),
        ("b/2", "b/2.png", "b/2.png"),
    ]
    assert [pair.lq.name for pair in paired.pairs if pair.lq] == ["1.bmp", "10.bmp", "b/2.bmp"]


def test_a_missing_picture_is_named_in_each_folder(tmp_path: Path) -> None:
    three = folder(tmp_path / "three", "1.png", "2.png", "3.png")
    two = folder(tmp_path / "two", "1.png", "3.png")
    with pytest.raises(UsageError, match=r"two lacks 2 of .*three; expected one picture for each of the 3"):
        pair_folders(two, three)
    with pytest.raises(UsageError, match=r"two lacks 2 of .*three"):
        pair_folders(three, three, two)


def test_a_picture_without_a_partner_is_named_and_many_are_counted(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", "1.png")
    many = folder(tmp_path / "many", *(f"{number}.png" for number in range(1, 7)))
    with pytest.raises(UsageError, match=r"many holds 2, 3, 4 and 2 more, without a partner in .*one"):
        pair_folders(many, one)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds 1\.jpg and 1\.png; expected one picture of that name"):
        pair_folders(folder(tmp_path / "a", "1.png", "1.jpg"), folder(tmp_path / "b", "1.png"))


def test_an_empty_folder_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no images"):
        pair_folders(str(tmp_path / "empty"), folder(tmp_path / "b", "1.png"))


def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", "1.png")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "a" / "2.tif")
    (tmp_path / "a" / "3.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:40])
    paired = pair_folders(place, place)
    assert read_picture(paired.restored, paired.pairs[0].restored).shape == (8, 8, 3)
    for pair, name in zip(paired.pairs[1:], ("2.tif", "3.png"), strict=True):
        with pytest.raises(
            UsageError, match=f"{name} of .* cannot be used: .*; expected a whole 8-bit picture"
        ):
            read_picture(paired.restored, pair.restored)
