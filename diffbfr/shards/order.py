"""Which sample comes at position p of a run: every key exactly once an epoch, for any number of ranks and
workers.

A run is an endless row of positions 0, 1, 2, ...; epoch p // n is a permutation of the n samples keyed by
(seed, epoch). So the whole state of a loader is the integer p: whoever knows it resumes at once, also with
another number of workers.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the permutation of 0..n-1 that is epoch `epoch` of a run with this seed; read-only, the same on
    every machine.

    It sorts raw Philox words: NumPy promises that stream, not its shuffles'.
    """
    if n < 1 or epoch < 0:
        raise ValueError(f"epoch {epoch} of {n} samples; expected epoch >= 0 and at least one sample")
    key = hashlib.sha256(f"diffbfr epoch order\0{seed}\0{epoch}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(n)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def position(seed: int, p: int, n: int) -> int:
    """Return the index (0..n-1) of the sample at position p of the run: epoch_order(seed, p // n, n)[p %
    n].
    """
    return int(epoch_order(seed, p // n, n)[p % n])
