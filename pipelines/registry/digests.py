"""When two models are one: the digest of their specifications and weights, the same that `diffbfr.cascade` and the ledgers know."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from diffbfr.errors import UsageError


def model_digest(folder: Path, stages: Sequence[str]) -> str:
    """Digest of `STAGE.json` and `STAGE.safetensors` of one stage or of a cascade's three; equals `cascade_digest` for the three."""
    total = hashlib.sha256()
    for path in model_files(folder, stages):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def model_files(folder: Path, stages: Sequence[str]) -> list[Path]:
    """Files that make a model: a specification and safetensors a stage, and nothing that could run code."""
    files = [folder / f"{stage}.{suffix}" for stage in stages for suffix in ("json", "safetensors")]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UsageError(f"{folder} holds no {missing[0]}; expected {', '.join(path.name for path in files)}; train or register it first")
    return files
