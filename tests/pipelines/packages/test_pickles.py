"""Arrays come out of pickles and TorchScript files as they went in, and nothing in them is run."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from diffbfr.errors import UsageError
from pipelines.packages.pickles import read_array_pickle, read_torchscript


class Touch:
    """A pickle that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


class Net(torch.nn.Module):
    """A module with parameters, a nested module and an attribute that is no array."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.tower = torch.nn.Sequential(torch.nn.Linear(4, 2))
        self.stride = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.tower(self.conv(x).mean((2, 3)))
        return out


def scripted() -> tuple[Net, bytes]:
    torch.manual_seed(0)
    net = Net().eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 8, 8)), buffer)
    return net, buffer.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_nested_dictionaries_come_back_under_dotted_names(protocol: int) -> None:
    wanted = {"a": {"kernel": np.arange(6, dtype="<f4").reshape(2, 3), "bias": np.ones(3)}, "b": np.zeros(2)}
    found = read_array_pickle(pickle.dumps(wanted, protocol))
    assert list(found) == ["a.kernel", "a.bias", "b"]
    np.testing.assert_array_equal(found["a.kernel"], wanted["a"]["kernel"])
    assert found["a.kernel"].dtype == np.float32


def test_an_array_pickle_of_an_old_numpy_is_read() -> None:
    data = pickle.dumps({"a": np.arange(3.0)}, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in data
    np.testing.assert_array_equal(read_array_pickle(data)["a"], np.arange(3.0))


def test_a_pickle_that_calls_anything_else_is_refused_and_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"asks for (io|_io)\.open; only arrays are read"):
        read_array_pickle(pickle.dumps({"a": Touch(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os system", "builtins eval", "numpy load", "torch load"])
def test_a_named_function_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="only arrays are read"):
        read_array_pickle(f"c{name.replace(' ', chr(10))}\n(S'x'\ntR.".encode())


def test_an_array_of_objects_and_a_cut_pickle_are_refused() -> None:
    with pytest.raises(UsageError, match="holds objects"):
        read_array_pickle(pickle.dumps({"a": np.array([None, 1], dtype=object)}))
    with pytest.raises(UsageError, match="cannot be read"):
        read_array_pickle(pickle.dumps({"a": np.zeros(100)})[:-60])


def test_tensors_of_a_torchscript_file_are_those_of_its_modules() -> None:
    net, data = scripted()
    found = read_torchscript(data)
    wanted = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    assert found.keys() >= wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def rewritten(data: bytes, pickled: bytes) -> bytes:
    """A TorchScript file whose record of modules is another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("/data.pkl") else source.read(name))
    return buffer.getvalue()


def test_a_torchscript_file_that_calls_a_function_is_refused(tmp_path: Path) -> None:
    _, data = scripted()
    with pytest.raises(UsageError, match="only arrays are read"):
        read_torchscript(rewritten(data, pickle.dumps(Touch(tmp_path / "ran"))))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UsageError, match="no zip"):
        read_torchscript(b"no zip")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused() -> None:
    _, data = scripted()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        pickled = archive.read(name)
    # The shape of the convolution is in the pickle as single bytes: 4, 3, 3, 3.
    wider = pickled.replace(b"(K\x04K\x03K\x03K\x03t", b"(K\xffK\x03K\x03K\x03t")
    assert wider != pickled
    with pytest.raises(UsageError, match="reaches beyond its storage"):
        read_torchscript(rewritten(data, wider))
