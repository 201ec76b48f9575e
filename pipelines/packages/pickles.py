"""Arrays out of pickles and TorchScript files, without running what they contain.

A pickle may name any callable of any module and have it called. The readers here resolve a fixed list of
names that only build arrays, and refuse every other one.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError

Arrays: TypeAlias = dict[str, NDArray[Any]]

_MAX_PICKLE_BYTES: Final = 16 << 20
_ELEMENT_TYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "FloatStorage": np.dtype("<f4"),
    "LongStorage": np.dtype("<i8"),
}


def read_array_pickle(data: bytes) -> Arrays:
    """Return the arrays of a pickled nest of dictionaries, under dotted names; UsageError for any other."""
    return _flatten(_load(_ArrayUnpickler(io.BytesIO(data))))


def read_torchscript(data: bytes) -> Arrays:
    """Return the tensors of a TorchScript file under the dotted names of their modules.

    The compiled code in the file is neither loaded nor run: a module is read as the record of its attributes.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise UsageError(f"a TorchScript file is no zip ({error}); expected one; fetch it again") from error
    with archive:
        places = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(places) != 1 or archive.getinfo(places[0]).file_size > _MAX_PICKLE_BYTES:
            raise UsageError("a TorchScript file holds no usable data.pkl; expected one; fetch it again")
        root = places[0].partition("/")[0]

        def storage(element: str, key: str) -> NDArray[Any]:
            return np.frombuffer(archive.read(f"{root}/data/{key}"), dtype=_ELEMENT_TYPES[element])

        loaded = _load(_ModuleUnpickler(io.BytesIO(archive.read(places[0])), storage))
    return _flatten(loaded)


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves only what numpy's arrays are rebuilt by, in old and new versions of numpy."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _bytes
        raise _refused(module, name)


class _ModuleUnpickler(pickle.Unpickler):
    """Reads modules as records, and tensors as arrays over the file's storages."""

    def __init__(self, stream: io.BytesIO, storage: Callable[[str, str], NDArray[Any]]) -> None:
        super().__init__(stream)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch.jit._pickle", "build_intlist"):
            return list
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _ELEMENT_TYPES:
            return name
        raise _refused(module, name)

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        kind, element, key, *_ = pid
        if kind != "storage" or element not in _ELEMENT_TYPES or not str(key).isdigit():
            raise UsageError(f"a pickle refers to {pid!r:.60}; expected a storage of numbers; fetch it again")
        return self._storage(element, str(key))


class _Module:
    """The attributes of a TorchScript module."""

    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.attributes = state


def _empty_array(kind: Any, shape: Any, element: Any) -> NDArray[Any]:
    """What a pickled array starts as; its state, with dtype and bytes, is set afterwards."""
    if kind is not np.ndarray:
        raise UsageError("a pickle rebuilds an array of another class; expected numpy's; fetch it again")
    return np.ndarray(shape, np.int8)


def _bytes(text: str, encoding: str) -> bytes:
    """The bytes of an array, as protocols 0 to 2 store them."""
    if encoding != "latin1":
        raise UsageError(f"a pickle encodes as {encoding}; expected latin1; fetch the file again")
    return text.encode("latin1")


def _tensor(storage: NDArray[Any], offset: int, shape: Any, strides: Any, *_: Any) -> NDArray[Any]:
    """A tensor in its own memory; its elements must lie inside the storage."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= len(storage)):
        raise UsageError("a tensor reaches beyond its storage; expected it inside; fetch the file again")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.array(np.lib.stride_tricks.as_strided(storage[offset:], tuple(shape), steps))


def _load(unpickler: pickle.Unpickler) -> Any:
    try:
        return unpickler.load()
    except UsageError:
        raise
    # a damaged pickle may raise anything
    except Exception as error:
        raise UsageError(
            f"a pickle cannot be read ({type(error).__name__}); expected arrays; fetch the file again"
        ) from error


def _refused(module: str, name: str) -> UsageError:
    return UsageError(
        f"a pickle asks for {module}.{name}; only arrays are read from it; do not use this file"
    )


def _flatten(value: Any, prefix: str = "") -> Arrays:
    """The arrays of nested records by dotted name; other attributes, such as strides, are left out."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise UsageError(f"the array {prefix} holds objects; expected numbers; do not use this file")
        return {prefix: value}
    children = value.attributes if isinstance(value, _Module) else value
    arrays: Arrays = {}
    if isinstance(children, Mapping):
        for name, child in children.items():
            arrays |= _flatten(child, f"{prefix}.{name}" if prefix else str(name))
    return arrays
