"""Layers of dlib's files are found in order, with the values behind their names."""

import struct

import numpy as np
import pytest

from diffbfr.errors import UsageError
from pipelines.packages.dlib_file import read_layers


def integer(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 7) // 8 or 1, "little")
    return bytes([len(data)]) + data


def layer(name: str, values: np.ndarray, *before: int) -> bytes:
    numbers = (*before, 2, len(values), 1, 1, 1)
    head = b"\x01" + bytes([len(name)]) + name.encode()
    return head + b"".join(map(integer, numbers)) + values.astype("<f4").tobytes()


def test_layers_are_read_in_order() -> None:
    conv, affine, fc = np.arange(300.0), np.ones(4), np.arange(6.0)
    data = b"head" + layer("con_4", conv) + b"between" + layer("affine_", affine) + layer("fc_2", fc, 3, 2)
    found = read_layers(data + b"tail")
    assert [name for name, _ in found] == ["con_4", "affine_", "fc_2"]
    for (_, values), wanted in zip(found, (conv, affine, fc), strict=True):
        np.testing.assert_array_equal(values, wanted)


def test_a_name_among_the_values_is_no_layer() -> None:
    values = np.frombuffer(b"\x01\x05con_4\x01\x02" + bytes(7), "<f4")
    assert len(read_layers(layer("con_4", values))) == 1


@pytest.mark.parametrize("cut", [8, 12, 100])
def test_a_cut_file_is_one_line(cut: int) -> None:
    with pytest.raises(UsageError, match="fetch the file again"):
        read_layers(layer("con_4", np.arange(300.0))[:cut])


def test_a_tensor_of_another_version_is_refused() -> None:
    data = b"\x01\x05con_4" + b"".join(map(integer, (3, 1, 1, 1, 1))) + struct.pack("<f", 1.0)
    with pytest.raises(UsageError, match="no tensor of dlib"):
        read_layers(data)
