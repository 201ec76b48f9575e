"""Where weights that others trained come from, and their terms: kept in the header of the weights' file.

A header goes wherever the file goes: into a cascade, the registry, a bucket, and through `save_stage` into
weights that were trained further. So no copy of imported weights loses its licence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from diffbfr.documents import abridged, decode_json
from diffbfr.errors import UsageError, one_line
from diffbfr.spec import from_dict, to_dict

ORIGIN: Final = "origin"
"""Key of the origin among the metadata of a safetensors file."""
_MAX_CHARACTERS: Final = 600


@dataclass(frozen=True)
class Origin:
    """A public checkpoint: its name, file and sha256, its licence in a line, and the terms in sentences."""

    source: str
    file: str
    sha256: str
    licence: str
    terms: str

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if not text.isprintable() or len(text) > _MAX_CHARACTERS:
                raise UsageError(
                    f"the origin of weights has {name}={abridged(text)}; expected printable text of at most "
                    f"{_MAX_CHARACTERS} characters"
                )


def read_origin(path: Path) -> Origin | None:
    """The origin in the header of a weights' file; None for weights of one's own. UsageError if damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(ORIGIN)
    except SafetensorError as error:
        raise UsageError(
            f"{path} cannot be read ({one_line(error)}); expected the weights of a stage; choose another "
            "version"
        ) from error
    if text is None:
        return None
    try:
        return from_dict(Origin, decode_json(text), ORIGIN)
    except ValueError as error:
        raise UsageError(
            f"{path} names no origin ({one_line(error)}); expected the one that it was imported with; "
            "choose another version"
        ) from error


def read_origins(folder: Path, stages: Iterable[str]) -> dict[str, Origin]:
    """The origins of those stages in a folder that others trained, by stage."""
    found = {stage: read_origin(folder / f"{stage}.safetensors") for stage in stages}
    return {stage: origin for stage, origin in found.items() if origin is not None}


def licences(origins: Iterable[Origin]) -> tuple[str, ...]:
    """Each licence once, with the checkpoint that it is of."""
    return tuple(dict.fromkeys(f"{origin.source}: {origin.licence}" for origin in origins))


def with_origins(record: Mapping[str, object], folder: Path, stages: Iterable[str]) -> dict[str, object]:
    """The record of a cascade in a folder, with the origins of its stages if others trained any."""
    origins = {stage: to_dict(origin) for stage, origin in read_origins(folder, stages).items()}
    return {**record, "origins": origins} if origins else dict(record)
