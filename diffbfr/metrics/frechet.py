"""Frechet distance between two Gaussians fitted to features (Heusel et al., arXiv:1706.08500), in float64.

FID is this distance over the 2,048 features of `inception.py`. Over any other embedding it is a Frechet
distance of that embedding and has another name: the numbers cannot be compared.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo

NUM_FEATURES: Final = 2048
BLOCK_VECTORS: Final = 512
"""Each block costs a pass over the covariance, which has 34 MB for FID."""
FID: Final = MetricInfo(
    name="FID",
    version="1",
    unit="",
    better="lower",
    protocol="Frechet distance over the 2,048 pooled features of TensorFlow's inception-2015-12-05, "
    "pictures scaled to 299 px bilinearly without antialiasing; means and sample covariances in float64",
)

FID_EMBEDDING: Final = "inception-2015-12-05"
DLIB: Final = MetricInfo(
    name="frechet-dlib",
    version="1",
    unit="1e-3",
    better="lower",
    protocol="Frechet distance over the 128 numbers of dlib's face ResNet, times 1,000; not FID",
)
DLIB_EMBEDDING: Final = "dlib-face-resnet"
MOBILEFACENET: Final = MetricInfo(
    name="frechet-mobilefacenet",
    version="1",
    unit="1e-3",
    better="lower",
    protocol="Frechet distance over the 256 numbers of MobileFaceNet (picture and mirror), times 1,000; not "
    "FID",
)
MOBILEFACENET_EMBEDDING: Final = "mobilefacenet"


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and sample covariance of `count` feature vectors; `embedding` names their network."""

    embedding: str
    count: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    source: str = ""

    def __post_init__(self) -> None:
        width = len(self.mean)
        if self.mean.shape != (width,) or self.covariance.shape != (width, width):
            raise UsageError(
                f"statistics have the shapes {self.mean.shape} and {self.covariance.shape}; expected d and "
                "d x d; make them again with --write-statistics"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise UsageError(
                "statistics hold NaN or infinity; expected finite numbers; make them again with "
                "--write-statistics"
            )

    @property
    def is_singular(self) -> bool:
        """Whether there were too few vectors for a covariance of full rank."""
        return self.count <= len(self.mean)


class MomentAccumulator:
    """Mean and covariance of vectors that arrive in batches: memory does not grow with their number.

    Vectors are gathered to blocks, which are combined by the update of Chan, Golub and LeVeque (1979), so
    that no precision is lost to a large mean.
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))
        self._waiting: list[NDArray[np.float64]] = []
        self._num_waiting = 0

    @property
    def count(self) -> int:
        """How many vectors were taken."""
        return self._count + self._num_waiting

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Take a batch of vectors."""
        batch = np.array(features, dtype=np.float64)
        if batch.ndim != 2 or batch.shape[1] != len(self._mean):
            raise UsageError(f"features have the shape {batch.shape}; expected n x {len(self._mean)}")
        if not np.isfinite(batch).all():
            raise UsageError("features hold NaN or infinity; expected finite numbers; check the pictures")
        self._waiting.append(batch)
        self._num_waiting += len(batch)
        if self._num_waiting >= BLOCK_VECTORS:
            self._combine()

    def statistics(self, embedding: str, source: str = "") -> FeatureStatistics:
        """The statistics of all vectors so far; UsageError below two, where there is no covariance."""
        self._combine()
        if self.count < 2:
            raise UsageError(
                f"a covariance of {self.count} pictures; expected at least 2, and {len(self._mean) + 1} for "
                "full rank; give more pictures"
            )
        return FeatureStatistics(
            embedding, self.count, self._mean.copy(), self._scatter / (self.count - 1), source
        )

    def _combine(self) -> None:
        if not self._num_waiting:
            return
        block = np.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0
        block_mean = block.mean(axis=0)
        block -= block_mean
        shift, total = block_mean - self._mean, self._count + len(block)
        self._scatter += block.T @ block
        self._scatter += np.outer(shift * (self._count * len(block) / total), shift)
        self._mean += shift * (len(block) / total)
        self._count = total


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared distance of the means plus tr(A + B - 2 (A B)^1/2).

    The trace of the square root is the sum of the square roots of the eigenvalues of A^1/2 B A^1/2, which is
    symmetric: no complex square root, and nothing is added to a singular covariance.
    """
    if a.embedding != b.embedding or a.mean.shape != b.mean.shape:
        raise UsageError(
            f"statistics of {a.embedding} ({len(a.mean)}) against {b.embedding} ({len(b.mean)}); expected "
            "one embedding; make both with the same one"
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    inner = root @ b.covariance @ root
    shared = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(min=0)).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def to_npz(statistics: FeatureStatistics) -> bytes:
    """The statistics as an .npz file, with the names `mu` and `sigma` that other programs use too."""
    facts = {
        "embedding": statistics.embedding,
        "count": statistics.count,
        "source": statistics.source,
    }
    buffer = io.BytesIO()
    np.savez(buffer, mu=statistics.mean, sigma=statistics.covariance, facts=np.array(json.dumps(facts)))
    return buffer.getvalue()


def from_npz(data: bytes, name: str) -> FeatureStatistics:
    """Read statistics; `name` is that of the file, for errors.

    Files of other programs have no facts: they are taken for FID's Inception if they are that wide, and
    their count is 0 (unknown).
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"])) if "facts" in arrays else {}
            mean, covariance = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{name} holds no statistics; expected an .npz with the arrays of numbers mu and sigma; make "
            "one with --write-statistics"
        ) from error
    guess = FID_EMBEDDING if mean.size == NUM_FEATURES else f"unnamed-{mean.size}"
    embedding = str(facts.get("embedding", guess))
    return FeatureStatistics(
        embedding, int(facts.get("count", 0)), mean.reshape(-1), covariance, str(facts.get("source", ""))
    )
