"""Names in the mirror: one a photo, inside the output folder, the same after a cut as without."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.restoration.output_names import RESERVED, Naming, copied_name, output_names
from pipelines.restoration.photo_output import WantedFormat

NAMES = st.lists(
    st.text(alphabet=st.sampled_from("aAbé\u0301./\\-"), min_size=1, max_size=8).map(
        lambda stem: f"{stem}.jpg"
    )
    | st.sampled_from(
        ["a.jpg", "a.png", "A.JPG", "a.jpg.png", "a.png.png", "a", "a.txt", "a.jpg.2.png", ".diffbfr/a.jpg"]
    ),
    unique=True,
    max_size=8,
).map(sorted)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("trip/a.jpg", "trip/a.png"),
        ("caf\\xe9/\\xff\\x80.jpg", "caf%e9/%ff%80.png"),
        ("Album\\xmas.jpg", "Album/xmas.png"),
        ("trip/Zoë 写真.JPEG", "trip/Zoë 写真.png"),
        ("a.png", "a.png"),
        ("no suffix", "no suffix.png"),
        ("2. Advent", "2. Advent.png"),
        ("../../etc/a.jpg", "etc/a.png"),
        ("/etc/a.jpg", "etc/a.png"),
        ("C:\\x\\a.jpg", "C:/x/a.png"),
        (".diffbfr/commits/a.jpg", "_.diffbfr/commits/a.png"),
        ("..", "_.png"),
    ],
)
def test_a_name_keeps_its_folder_and_gets_the_suffix_png(name: str, output: str) -> None:
    assert output_names([name], {}) == {name: output}


def test_names_that_would_collide_keep_their_suffix() -> None:
    assert output_names(["a.jpg", "a.png", "b.jpg"], {}) == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "b.jpg": "b.png",
    }
    assert set(output_names(["A.jpg", "a.jpg"], {}).values()) == {"A.jpg.png", "a.jpg.2.png"}, (
        "where case is ignored too"
    )
    assert len(set(output_names(["a.jpg", "a.png", "a.jpg.png"], {}).values())) == 3


@given(NAMES, st.data())
def test_no_two_photos_share_a_name_and_a_continued_run_gives_the_same_names(
    names: list[str], data: st.DataObject
) -> None:
    undisturbed = output_names(names, {})

    assert len({output.casefold() for output in undisturbed.values()}) == len(names)
    assert not any(
        part in ("", ".", "..", ".diffbfr")
        for output in undisturbed.values()
        for part in output.split("/")[:-1]
    )
    done = data.draw(st.sets(st.sampled_from(names))) if names else set()
    assert output_names(names, {name: undisturbed[name] for name in done}) == undisturbed


def test_names_given_earlier_stay_when_the_archive_grows() -> None:
    taken = output_names(["a.jpg", "b.jpg"], {})
    grown = output_names(["a.jpg", "a.png", "b.jpg"], taken)

    assert grown["a.jpg"] == "a.png"
    assert len(set(itertools.chain(grown.values()))) == 3


def test_a_file_keeps_its_suffix_where_its_output_would_have_the_name_of_a_folder() -> None:
    names = [
        "photo.jpg",
        "photo.png/crop.jpg",
        "B.jpg",
        "b.PNG/x/1.jpg",
        "c",
        "c.png/1.jpg",
        "c.png.png/1.jpg",
    ]
    assert output_names(names, {}) == {
        "photo.jpg": "photo.jpg.png",
        "photo.png/crop.jpg": "photo.png/crop.png",
        "B.jpg": "B.jpg.png",
        "b.PNG/x/1.jpg": "b.PNG/x/1.png",
        "c": "c.2.png",
        "c.png/1.jpg": "c.png/1.png",
        "c.png.png/1.jpg": "c.png.png/1.png",
    }


def test_a_member_that_is_both_a_file_and_a_folder_gets_two_places() -> None:
    assert output_names(["a.png", "a.png/b.png"], {}) == {"a.png": "a.png.png", "a.png/b.png": "a.png/b.png"}


def test_a_folder_that_comes_later_makes_way_for_the_file_of_an_earlier_run() -> None:
    taken = output_names(["photo.jpg"], {})
    grown = output_names(["photo.jpg", "photo.png/crop.jpg"], taken)
    assert grown == {"photo.jpg": "photo.png", "photo.png/crop.jpg": "photo.png_/crop.png"}


@pytest.mark.parametrize("own", sorted(RESERVED))
def test_folders_of_the_input_do_not_have_the_names_of_our_own_files(own: str) -> None:
    spellings = (own, own.upper(), f"{own}. ", f"{own[:3]}\u200c{own[3:]}")
    for name in spellings:
        assert output_names([f"{name}/x.jpg"], {}) == {f"{name}/x.jpg": f"_{name}/x.png"}
    assert output_names([f"album/{own}/x.jpg"], {}) == {f"album/{own}/x.jpg": f"album/{own}/x.png"}


LONG = st.lists(
    st.lists(st.text(st.sampled_from("a家é😀~."), min_size=1, max_size=300), min_size=1, max_size=6).map(
        "/".join
    ),
    unique=True,
    max_size=6,
)


@given(LONG, st.data())
def test_names_fit_every_file_system_and_stay_apart(names: list[str], data: st.DataObject) -> None:
    names = sorted(names)
    given = output_names(names, {})
    assert all(len(output.encode()) <= 800 for output in given.values())
    assert all(len(part.encode()) <= 255 for output in given.values() for part in output.split("/"))
    assert all(output.endswith(".png") for output in given.values())
    assert len({output.casefold() for output in given.values()}) == len(names)
    done = data.draw(st.sets(st.sampled_from(names))) if names else set()
    assert output_names(names, {name: given[name] for name in done}) == given


def test_a_name_of_255_bytes_and_one_of_274_are_cut_at_a_character_and_get_a_digest() -> None:
    legal, japanese = f"{'n' * 250}.webp", f"{'家' * 90}.jpg"
    outputs = output_names([legal, japanese, f"{'家' * 89}族.jpg"], {})
    assert outputs[legal] == f"{'n' * 250}.png"
    assert outputs[japanese].startswith("家" * 70)
    assert len(set(outputs.values())) == 3


def test_names_that_are_equal_after_mending_cost_linear_time() -> None:
    def seconds(number: int) -> float:
        names = [f"d{k:013b}a.png".replace("0", "/").replace("1", "/./") for k in range(number)]
        started = time.process_time()
        assert len(set(output_names(names, {}).values())) == number
        return time.process_time() - started

    few, many = min(seconds(500) for _ in range(3)), min(seconds(4000) for _ in range(2))
    assert many < 24 * few + 0.2  # 8 times as many names; 64 times the time if it were quadratic


@pytest.mark.parametrize(
    ("file_format", "name", "output"),
    [
        (None, "trip/a.JPG", "trip/a.JPG"),
        (None, "a.bmp", "a.bmp.png"),
        (None, "no suffix", "no suffix"),
        ("jpeg", "trip/a.JPG", "trip/a.JPG"),
        ("jpeg", "a.tif", "a.jpg"),
        ("webp", "a.b.jpg", "a.b.webp"),
        ("png", "a.JPEG", "a.png"),
    ],
)
def test_a_name_follows_the_format_and_is_kept_without_one(
    file_format: WantedFormat | None, name: str, output: str
) -> None:
    assert output_names([name], {}, Naming(file_format)) == {name: output}


def test_kept_names_that_a_file_system_may_take_for_one_get_numbers() -> None:
    names = ["A.jpg", "a.jpg", "x.bmp", "x.bmp.png"]
    assert output_names(names, {}, Naming(None)) == {
        "A.jpg": "A.jpg",
        "a.jpg": "a.2.jpg",
        "x.bmp": "x.bmp.png",
        "x.bmp.png": "x.bmp.2.png",
    }
    assert copied_name("x.bmp.png", "x.bmp") == "x.bmp"
    assert copied_name("x.bmp.2.png", "x.bmp.png") == "x.bmp.2.png"


@given(NAMES, st.data())
def test_kept_names_are_apart_and_the_same_after_a_cut(names: list[str], data: st.DataObject) -> None:
    undisturbed = output_names(names, {}, Naming(None))
    assert len({output.casefold() for output in undisturbed.values()}) == len(names)
    done = data.draw(st.sets(st.sampled_from(names))) if names else set()
    assert output_names(names, {name: undisturbed[name] for name in done}, Naming(None)) == undisturbed
