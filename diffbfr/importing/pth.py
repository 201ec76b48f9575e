"""Tensors out of a file of torch (`.pth`), read with `weights_only=True` and nothing else.

Such a file holds a pickle, and a pickle may ask for any code to be run. torch's restricted reader builds
tensors and plain containers only. Before it looks, the file must be a regular one, and a zip whose members
are stored as they are, so that nothing in it is larger than the file. torch does not compare the checksums of
the members; `check_members` does.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from diffbfr.documents import abridged
from diffbfr.errors import UsageError, one_line

_MAX_TENSORS: Final = 10_000
_REFUSED: Final = re.compile(r"GLOBAL ([\w.]+)")
_WRAPPERS: Final = ("state_dict", "params_ema", "params")
"""Keys under which programs save the network beside other things, best first."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped into memory where the format allows; UsageError for any other."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "is not there"
        raise UsageError(f"{path} {what}; expected a checkpoint of torch (.pth); name its file")
    with path.open("rb") as file:  # one that may not be read is no damaged one
        is_zip = zipfile.is_zipfile(file)
    if is_zip:
        _check_stored(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise _unreadable(path, one_line(error).partition(". ")[0]) from error
    return _tensors_of(loaded, path)


def check_members(path: Path) -> None:
    """UsageError if a member of the file differs from its checksum, as after a damaged transfer."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise _unreadable(path, one_line(error)) from error
    if damaged is not None:
        raise _unreadable(path, f"its member {damaged} differs from its checksum")


def _check_stored(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _unreadable(path, one_line(error)) from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise _unreadable(path, "it is TorchScript, a program")
    packed = [member.filename for member in members if member.compress_type]
    if packed:
        raise _unreadable(path, f"its member {packed[0]} is compressed; torch stores them as they are")


def _tensors_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in what a file holds: a mapping of names to them, alone or under a usual key."""
    if isinstance(loaded, Mapping):
        wrapped = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)
        tensors = {name: value for name, value in wrapped.items() if isinstance(value, Tensor)}
        others = [name for name in wrapped if name not in tensors or not isinstance(name, str)]
        if tensors and not others and len(tensors) <= _MAX_TENSORS:
            return tensors
        found = (
            f"{len(wrapped):,} entries, of which {abridged(others[0])} is no tensor"
            if others
            else f"{len(tensors):,} tensors"
        )
    else:
        found = f"a {type(loaded).__name__}"
    raise UsageError(f"{path} holds {found}; expected the tensors of a network by name; name another file")


def _refused(path: Path, message: str) -> UsageError:
    """The refusal of a pickle; torch's message names what it asked for."""
    asked = _REFUSED.search(message)
    if asked is None:
        return _unreadable(path, "it holds no tensors that torch wrote")
    return UsageError(
        f"{path} asks for {asked[1]}; expected tensors alone, no code of a file is run (weights_only=True); "
        "do not use this file"
    )


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{path} cannot be read ({reason}); expected a whole checkpoint of torch (.pth); fetch it again"
    )
