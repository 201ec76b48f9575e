"""Weights of a stage that others made: nothing is allocated before their header fits the network.

The network of the specification is built on torch's `meta` device, which holds shapes and no numbers, and
compared with the header of the safetensors file. So a file costs no more memory than its own size, whatever
its specification asks for.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffbfr.errors import UsageError, one_line
from diffbfr.models.unet import UNet
from diffbfr.unet_spec import UNetSpec

_MAX_HEADER_BYTES: Final = 1 << 22
"""Ten times the header of Table 6's largest network; the format itself allows 100 MB."""
_DTYPES: Final = ("F32", "F16", "BF16", "F64")


def check_header(path: Path, name: str, spec: UNetSpec) -> str | None:
    """Compare names, shapes and types of the tensors in a file with a network; nothing is read into memory.

    Returns the specification that the file says it was trained as, as JSON text; None if it says none.
    UsageError names the first difference.
    """
    _check_header_length(path, name)
    with torch.device("meta"):
        wanted = {key: list(parameter.shape) for key, parameter in UNet(spec).named_parameters()}
    try:
        with safe_open(path, framework="pt") as file:
            trained = (file.metadata() or {}).get("spec")
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            found = {key: list(part.get_shape()) for key, part in slices.items()}
            types = {key: part.get_dtype() for key, part in slices.items()}
    except SafetensorError as error:
        raise _unreadable(path, name, one_line(error)) from error
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UsageError(
                f"{path} has {key[:80]} of shape {found.get(key)}; expected {wanted.get(key)}; the file "
                f"is not of this {name}"
            )
        if types[key] not in _DTYPES:
            raise UsageError(
                f"{path} has {key} as {types[key]}; expected {', '.join(_DTYPES)}; choose another version"
            )
    return trained


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file whose header was checked, as float32; UsageError if a number is not finite."""
    weights = {key: t.to(torch.float32) for key, t in load_file(path).items()}
    if not_finite := first_not_finite(weights):
        raise UsageError(
            f"{path} holds NaN or infinity in {not_finite}; expected finite weights; choose another version"
        )
    return weights


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity."""
    return next(
        (name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())),
        None,
    )


def _check_header_length(path: Path, name: str) -> None:
    """Read the eight bytes that begin the file: safetensors allocates what they say."""
    if not path.is_file():
        raise _unreadable(path, name, "there is no such file")
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise _unreadable(path, name, f"it has {len(start)} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > _MAX_HEADER_BYTES:
        raise _unreadable(
            path, name, f"its header has {length:,} bytes, at most {_MAX_HEADER_BYTES:,} are read"
        )


def _unreadable(path: Path, name: str, reason: str) -> UsageError:
    return UsageError(
        f"{path} cannot be read ({reason}); expected the weights of a {name}; choose another version"
    )
