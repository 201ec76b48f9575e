"""The detectors' weights: which files are known, how they are read, and which detector is used.

Two are known. MTCNN's three networks are in the wheel of `facenet-pytorch` on the Python package index (MIT);
the package itself cannot be installed beside this one, as it pins another torch and NumPy, so its weights are
read from the wheel, without running its code, into one safetensors file. YuNet is one ONNX file of OpenCV's
model zoo (MIT), which finds faces faster.
"""

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.faces.detect import FaceDetector


@dataclass(frozen=True)
class KnownFile:
    """A file of weights as its makers publish it."""

    detector: str
    name: str
    sha256: str
    num_bytes: int
    licence: str
    source: str


MTCNN_WHEEL: Final = KnownFile(
    detector="mtcnn",
    name="facenet_pytorch-2.6.0-py3-none-any.whl",
    sha256="ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
    num_bytes=1_881_930,
    licence="MIT",
    source="facenet-pytorch==2.6.0",
)
YUNET_FILE: Final = KnownFile(
    detector="yunet",
    name="face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    num_bytes=232_589,
    licence="MIT",
    source="https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/"
    "face_detection_yunet_2023mar.onnx",
)
YUNET, MTCNN = "yunet.onnx", "mtcnn.safetensors"
"""File names in the folder of detectors."""
_SETUP: Final = 'run "diffbfr setup faces"'


def find_weights(folder: Path) -> Path:
    """The weights that a folder has, YuNet's before MTCNN's; `UsageError` if there are none."""
    for name in (YUNET, MTCNN):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(
        f"no face detector in {folder}; expected {YUNET} or {MTCNN}; {_SETUP}, or give face crops and "
        "--aligned"
    )


def load_detector(weights: Path) -> FaceDetector:
    """The detector of a file of weights, by its suffix; `UsageError` if it is none."""
    if weights.suffix == ".onnx":
        from diffbfr.faces.yunet import YuNet

        return YuNet(weights)
    if weights.suffix == ".safetensors":
        from diffbfr.faces.mtcnn import Mtcnn

        return Mtcnn(weights)
    raise UsageError(
        f"{weights} is no face detector; expected YuNet as .onnx or MTCNN as .safetensors; {_SETUP}"
    )


def install(data: bytes, name: str, folder: Path) -> Path:
    """Put the weights of a file into the folder, and return their path there.

    YuNet's ONNX file is taken as it is, the wheel of `facenet-pytorch` is converted. `UsageError` for
    anything else, for another wheel, and for a file that does not load; then the folder is unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if zipfile.is_zipfile(io.BytesIO(data)):
        check(data, MTCNN_WHEEL)
        return _publish(convert_wheel(data), folder / MTCNN, name)
    if not name.endswith(".onnx"):
        raise UsageError(
            f"{name} is no face detector; expected YuNet as .onnx, or {MTCNN_WHEEL.name}; give one of them"
        )
    return _publish(data, folder / YUNET, name)


def licence_of(data: bytes) -> str:
    """The licence of a known file; that it is not known, of any other one."""
    digest = hashlib.sha256(data).hexdigest()
    known = (file.licence for file in (MTCNN_WHEEL, YUNET_FILE) if file.sha256 == digest)
    return next(known, "not known, as the file is none of those that are pinned")


def check(data: bytes, known: KnownFile) -> None:
    """Raise `UsageError` unless the bytes are those of a known file."""
    found = hashlib.sha256(data).hexdigest()
    if found != known.sha256:
        raise UsageError(
            f"{len(data)} bytes have sha256 {found}; expected {known.sha256}, that of {known.name}; "
            "get the file again from where its makers publish it"
        )


def convert_wheel(data: bytes) -> bytes:
    """MTCNN's networks from the bytes of the wheel, as safetensors; no code of the wheel is run."""
    import torch
    from safetensors.torch import save

    from diffbfr.faces.mtcnn import convert

    nets = {}
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        for letter in "pro":
            stored = io.BytesIO(wheel.read(f"facenet_pytorch/data/{letter}net.pt"))
            nets[letter] = torch.load(stored, map_location="cpu", weights_only=True)
    return save(convert(nets))


def _publish(data: bytes, path: Path, name: str) -> Path:
    """Write beside the path, load it as a detector, and rename."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    temporary.write_bytes(data)
    try:
        load_detector(temporary)
        temporary.replace(path)
    except UsageError as error:
        raise UsageError(
            f"{name} does not load as a face detector; expected YuNet's 640 x 640 export, or "
            f"{MTCNN_WHEEL.name}; give one of them"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
