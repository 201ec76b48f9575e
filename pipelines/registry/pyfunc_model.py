"""The code inside a registered cascade: base64 of aligned face crops in, base64 of restored PNGs out.

MLflow stores this file with the version and runs it on load ("models from code"), so a version holds no
pickle. The noise is keyed by the bytes of the input, as in `diffbfr restore --aligned`, so both give the same
restoration.

A request may come from anybody: its number of images, their bytes and their pixels are limited, they are
decoded in a process of their own, and what is refused is answered by one line.
"""

import base64
import binascii
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from diffbfr.images import Pixels

MAX_IMAGES: Final = 64
MAX_BYTES: Final = 32 << 20
"""Of one image file."""
MAX_PIXELS: Final = 4096 * 4096
_BATCH: Final = 8


class RequestRefusedError(MlflowException):
    """An answer of one line to the client."""

    def __init__(self, line: str, error_code: int = BAD_REQUEST) -> None:
        self._line = line
        super().__init__(line, error_code=error_code)

    @property
    def message(self) -> str:
        return self._line

    @message.setter
    def message(self, text: str) -> None:
        """MLflow's server puts the whole request in front of a message; the answer stays one line."""


class CascadeModel(PythonModel):
    """Restores aligned face crops with the cascade among the version's artifacts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the three networks from safetensors."""
        from diffbfr.cascade import Cascade

        self._cascade = Cascade.load(Path(context.artifacts["cascade"]))

    def predict(self, context: PythonModelContext, model_input: list[str]) -> list[str]:  # type: ignore[override]
        """Restore square images (base64, any format that `diffbfr restore` reads) to base64 of PNGs."""
        try:
            return self._predict(list(model_input))
        except RequestRefusedError:
            raise
        except Exception as error:
            # MLflow would send the traceback to the client
            logging.getLogger(__name__).exception("a request failed")
            raise RequestRefusedError(
                f"the restoration failed ({type(error).__name__}); the server's log has the reason",
                INTERNAL_ERROR,
            ) from None

    def _predict(self, texts: list[str]) -> list[str]:
        if len(texts) > MAX_IMAGES:
            raise RequestRefusedError(
                f"the request has {len(texts)} images; at most {MAX_IMAGES} are restored"
            )
        files = [_file(number, text) for number, text in enumerate(texts)]
        inputs = [self._read(number, data) for number, data in enumerate(files)]
        restored: list[bytes] = []
        for i in range(0, len(files), _BATCH):
            restored += self._restore(files[i : i + _BATCH], inputs[i : i + _BATCH])
        return [base64.b64encode(png).decode() for png in restored]

    def _read(self, number: int, data: bytes) -> "Pixels":
        """Decode and reduce one image in the sandbox."""
        from diffbfr.errors import one_line
        from diffbfr.images import ImageRefused
        from pipelines.restoration.face_input import read_face_sandboxed
        from pipelines.sources.sandbox import WorkerFailure

        try:
            read = read_face_sandboxed(data, self._cascade.lq_px, self._cascade.hq_px, MAX_PIXELS)
        except ImageRefused as error:
            raise RequestRefusedError(f"image {number}: {error.reason_code}: {one_line(error)}") from None
        if isinstance(read, WorkerFailure):
            raise RequestRefusedError(f"image {number}: {read.reason}: decoding it failed: {read.message}")
        return read.pixels

    def _restore(self, files: list[bytes], inputs: list["Pixels"]) -> list[bytes]:
        from diffbfr.images import encode_png, to_pixels, to_tensor
        from diffbfr.keys import noise_key

        noise_keys = [noise_key(hashlib.sha256(data).hexdigest()) for data in files]
        restored = self._cascade.restore(to_tensor(inputs), noise_keys).tem
        return [encode_png(pixels) for pixels in to_pixels(restored)]


def _file(number: int, text: str) -> bytes:
    """Decode one base64 text, whose length is checked before."""
    if len(text) > (MAX_BYTES + 2) // 3 * 4:
        raise RequestRefusedError(
            f"image {number} has about {len(text) * 3 // 4} bytes; at most {MAX_BYTES} are read"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestRefusedError(
            f"image {number} is no base64; expected the base64 of an image file"
        ) from None


set_model(CascadeModel())
