"""Cards name every point of a protocol, and a changed one has another digest."""

import dataclasses
from dataclasses import replace

import pytest

from diffbfr.errors import UsageError
from diffbfr.metrics.cards import CARDS, PAPER, find_card


def test_the_cards_are_those_that_exist_and_differ() -> None:
    assert list(CARDS) == ["paper", "celeba-test", "ffhq-holdout"]
    assert len({card.digest for card in CARDS.values()}) == 3
    assert (CARDS["paper"].num_pairs, CARDS["paper"].fid_reference) == (3000, "pairs")
    assert (CARDS["celeba-test"].fid_reference, CARDS["celeba-test"].fid_reference_count) == (
        "ffhq-70k",
        70_000,
    )


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PAPER)])
def test_every_field_is_in_the_digest(field: str) -> None:
    value = getattr(PAPER, field)
    other = value[:-1] if isinstance(value, str | tuple) else 1
    if field == "fid_reference":
        other = "ffhq-70k"
    assert replace(PAPER, **{field: other}).digest != PAPER.digest


def test_an_unknown_card_is_one_line() -> None:
    with pytest.raises(
        UsageError, match="no protocol card 'celeba'; expected paper, celeba-test, ffhq-holdout"
    ):
        find_card("celeba")
