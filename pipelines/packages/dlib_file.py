"""The parameters in a network file of dlib, in the order in which the layers compute.

Such a file names each layer ("con_4", "affine_", "fc_2") and stores its parameters as one tensor behind the
name: a version, four dimensions, and float32 values. A fully connected layer has its numbers of outputs and
inputs before that. An integer is a byte with its number of bytes, and the bytes, least significant first.
"""

import math
import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError

_LAYER: Final = re.compile(rb"\x01\x05con_4|\x01\x07affine_|\x01\x04fc_2")
_TENSOR_VERSION: Final = 2


def read_layers(data: bytes) -> list[tuple[str, NDArray[Any]]]:
    """Name and flat parameters of every convolution, affine layer and fully connected layer, in order."""
    layers = []
    at = 0
    while found := _LAYER.search(data, at):
        name, at = found.group()[2:].decode(), found.end()
        for _ in range(2 if name == "fc_2" else 0):
            _, at = _integer(data, at)
        values, at = _tensor(data, at)
        layers.append((name, values))
    return layers


def _tensor(data: bytes, at: int) -> tuple[NDArray[Any], int]:
    """The values of the tensor at an offset, and the offset behind it."""
    header = []
    for _ in range(5):
        value, at = _integer(data, at)
        header.append(value)
    version, *shape = header
    count = math.prod(shape)
    if version != _TENSOR_VERSION or count < 1 or at + 4 * count > len(data):
        raise UsageError(
            f"no tensor of dlib at byte {at}; expected one behind its layer; fetch the file again"
        )
    return np.frombuffer(data, "<f4", count, at), at + 4 * count


def _integer(data: bytes, at: int) -> tuple[int, int]:
    length = data[at] & 0x0F if at < len(data) else 0
    if not 1 <= length <= 8:
        raise UsageError(f"no integer of dlib at byte {at}; expected one; fetch the file again")
    end = at + 1 + length
    value = int.from_bytes(data[at + 1 : end], "little")
    return (-value if data[at] & 0x80 else value), end
