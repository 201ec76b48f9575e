"""Names in the mirror: one a photo, inside the output folder, the same after a cut as without."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.restoration.output_names import output_names

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
