"""A fake cascade for tests: enlarges, adds noise that depends on the key alone, and fails on demand."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffbfr.cascade import Restoration


@dataclass(frozen=True)
class FakeCascade:
    hq_px: int
    broken: tuple[str, ...]
    nan: tuple[str, ...]
    pause_s: float
    log: str
    is_batch_invariant: bool = False

    def restore(
        self,
        x_0: Tensor,
        noise_keys: Sequence[str],
        mode: str,
        fidelity: Sequence[float] | None = None,
    ) -> Restoration:
        time.sleep(self.pause_s)
        assert x_0.dtype == torch.float32
        assert len(noise_keys) == len(x_0)
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{len(noise_keys)} {' '.join(dict.fromkeys(noise_keys))}\n")
        if any(key.startswith(self.broken) for key in noise_keys if self.broken):
            raise RuntimeError("the device said no")
        tem = interpolate(x_0, size=(self.hq_px, self.hq_px), mode="nearest")
        for row, key in zip(tem, noise_keys, strict=True):
            seed = int.from_bytes(hashlib.sha256(f"{key} {mode}".encode()).digest()[:7], "big")
            row += 0.02 * torch.randn(row.shape, generator=torch.Generator().manual_seed(seed))
            if self.nan and key.startswith(self.nan):
                row[0, 0, 0] = float("nan")
        return Restoration(x_0, tem, tem)


@dataclass(frozen=True)
class FakeModel:
    """A fake model: it raises at the photos (sha256) in `broken`, returns NaN at those in `nan`.

    A line for each batch is written to the file `log`: its size and its keys.
    """

    digest: str = "d1" * 32
    lq_px: int = 16
    hq_px: int = 64
    broken: tuple[str, ...] = ()
    nan: tuple[str, ...] = ()
    pause_s: float = 0.0
    log: str = ""
    is_batch_invariant: bool = False
    licences: tuple[str, ...] = ()

    def load(self) -> FakeCascade:
        return FakeCascade(self.hq_px, self.broken, self.nan, self.pause_s, self.log, self.is_batch_invariant)
