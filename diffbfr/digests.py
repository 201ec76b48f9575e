"""The digest of a model: one format for a trained stage, a cascade, the registry and the ledgers."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffbfr.errors import UsageError
from diffbfr.stages import STAGE_NAMES

_CASCADE_RECORD = "cascade.json"


def model_digest(folder: Path, stages: Sequence[str]) -> str:
    """Digest of `STAGE.json` and `STAGE.safetensors` of one stage, or of the three of a cascade."""
    return digest_of_files((path.name, _sha256(path)) for path in model_files(folder, stages))


def digest_of_files(files: Iterable[tuple[str, str]]) -> str:
    """Digest of named files and their sha256, in this order."""
    total = hashlib.sha256()
    for name, sha256 in files:
        total.update(f"{name}\0{sha256}\n".encode())
    return total.hexdigest()


def model_files(folder: Path, stages: Sequence[str]) -> list[Path]:
    """The files of a model: one specification and one safetensors file per stage, and nothing executable.

    UsageError if one is missing.
    """
    files: list[Path] = []
    for stage in stages:
        files += [folder / f"{stage}.json", folder / f"{stage}.safetensors"]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UsageError(
            f"{folder} holds no {missing[0]}; expected {', '.join(path.name for path in files)}; "
            "train or register it first"
        )
    return files


def is_model_file(name: str) -> bool:
    """True for the names of the files that a stage or a cascade consists of."""
    stem, _, suffix = name.rpartition(".")
    return name == _CASCADE_RECORD or (stem in STAGE_NAMES and suffix in ("json", "safetensors"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
