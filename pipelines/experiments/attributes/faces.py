"""Procedural faces with chosen attributes: pairs that differ in one, and training sets by rate."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.images import encode_png
from diffbfr.synthetic import FaceAttributes, draw_attributes, render_attributes
from diffbfr.synthetic.attributes import RandomStream
from pipelines import storage

PRESENT: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "mole": {"moles": 1},
        "freckles": {"freckles": True},
        "glasses": {"glasses": True},
        "gray": {"gray": True},
    }
)
"""Attribute -> the fields of a face that has it."""
ABSENT: Final[Mapping[str, Any]] = MappingProxyType(
    {"moles": 0, "freckles": False, "glasses": False, "gray": False}
)
_CHOICE_STREAM: Final = 3
"""A stream of its own: which faces have an attribute says nothing about their other traits."""


@dataclass(frozen=True, eq=False)
class AttributePair:
    """One face with and without an attribute, uint8 [px, px, 3]; nothing else differs."""

    seed: int
    attribute: str
    present: NDArray[np.uint8]
    absent: NDArray[np.uint8]


def make_pair(seed: int, attribute: str, px: int) -> AttributePair:
    """Paint a face twice; it has none of the other attributes of `PRESENT`."""
    plain = replace(draw_attributes(seed), **ABSENT)
    marked = replace(plain, **PRESENT[attribute])
    present, absent = (render_attributes(face, px).pixels for face in (marked, plain))
    return AttributePair(seed, attribute, present, absent)


def visible_pairs(attribute: str, px: int, count: int, first_seed: int) -> Iterator[AttributePair]:
    """The first `count` pairs that differ: hair or a beard may hide a mole."""
    seeds = itertools.count(first_seed)
    while count:
        pair = make_pair(next(seeds), attribute, px)
        if not np.array_equal(pair.present, pair.absent):
            count -= 1
            yield pair


def with_rate(seed: int, rate: float) -> FaceAttributes:
    """The face of a seed, with each attribute at this rate, independent of the others.

    A face that has an attribute at one rate has it at every higher one.
    """
    stream = RandomStream(seed, _CHOICE_STREAM)
    changes: dict[str, Any] = dict(ABSENT)
    for fields in PRESENT.values():
        if stream.chance(rate):
            changes |= fields
    return replace(draw_attributes(seed), **changes)


def write_training_faces(folder: Path, count: int, first_seed: int, px: int, rate: float) -> None:
    """Write `count` faces as PNG; what is there is kept."""
    if not 0 <= rate <= 1:
        raise UsageError(f"found the rate {rate:g}; expected a fraction from 0 to 1, such as 0.05")
    for seed in range(first_seed, first_seed + count):
        place = folder / f"{seed:09d}.png"
        if not place.is_file():
            storage.write_atomic(str(place), encode_png(render_attributes(with_rate(seed, rate), px).pixels))
