"""Files of detectors for tests: a wheel like the known one, with random weights, and what the machine has."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import torch

from diffbfr.faces.mtcnn import Mtcnn, o_net, p_net, r_net
from diffbfr.faces.weights import MTCNN, MTCNN_WHEEL, YUNET, KnownFile
from diffbfr.faces.yunet import YuNet
from pipelines.flows.setup_faces import detectors_folder

SHARED = Path(__file__).parents[4] / "shared" / "data"
YUNET_FILE = SHARED / "metrics" / "face_detection_yunet.onnx"


def wheel(seed: int = 0, **replaced: bytes) -> bytes:
    """A wheel whose three files hold random weights under the names of the known one."""
    torch.manual_seed(seed)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for letter, network in (("p", p_net()), ("r", r_net()), ("o", o_net())):
            stored = io.BytesIO()
            torch.save(network.state_dict(), stored)
            archive.writestr(f"facenet_pytorch/data/{letter}net.pt", replaced.get(letter, stored.getvalue()))
        info = "facenet_pytorch-2.6.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: facenet-pytorch\nVersion: 2.6.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def known(data: bytes) -> KnownFile:
    """The known wheel, with the digest of these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    return KnownFile("mtcnn", MTCNN_WHEEL.name, digest, len(data), "MIT", MTCNN_WHEEL.source)


def real_detector(name: str) -> YuNet | Mtcnn:
    """A detector with its weights, or skip: YuNet's file is not in the repository, MTCNN's is downloaded."""
    if name == "yunet":
        found = [path for path in (YUNET_FILE, detectors_folder() / YUNET) if path.is_file()]
        if not found:
            pytest.skip(f"no {YUNET_FILE}, and none in {detectors_folder()}")
        return YuNet(found[0])
    if not (detectors_folder() / MTCNN).is_file():
        pytest.skip(f'no {MTCNN} in {detectors_folder()}; "diffbfr setup faces" brings it')
    return Mtcnn(detectors_folder() / MTCNN)
