"""Which sample is at position p of a run: every key once per epoch, for any number of ranks and workers.

A run is an endless sequence of positions 0, 1, 2, ...; epoch p // n is a permutation of the n samples that
is keyed by (seed, epoch). The whole state of a loader is therefore the integer p: it resumes at once, also
with another number of workers.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the permutation of 0..n-1 for one epoch of a run; read-only, and the same on every machine.

    It sorts raw Philox words, because NumPy guarantees that stream but not the one of its shuffles.
    """
    if n < 1 or epoch < 0:
        raise ValueError(f"epoch {epoch} of {n} samples; expected epoch >= 0 and at least one sample")
    key = hashlib.sha256(f"diffbfr epoch order\0{seed}\0{epoch}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(n)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def row_at(seed: int, p: int, n: int) -> int:
    """Return the index (0..n-1) of the sample at position p: epoch_order(seed, p // n, n)[p % n]."""
    return int(epoch_order(seed, p // n, n)[p % n])
