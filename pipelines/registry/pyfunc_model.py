"""The code inside a registered cascade: base64 of aligned face crops in, base64 of restored PNGs out.

MLflow stores this file with the version and runs it on load ("models from code"), so a version holds no
pickle. The noise is keyed by the bytes of the input, as in `diffbfr restore --aligned`, so both give the same
restoration.
"""

import base64
import hashlib
from pathlib import Path

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

_BATCH = 8


class CascadeModel(PythonModel):
    """Restores aligned face crops with the cascade among the version's artifacts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the three networks from safetensors."""
        from diffbfr.cascade import Cascade

        self._cascade = Cascade.load(Path(context.artifacts["cascade"]))

    def predict(self, context: PythonModelContext, model_input: list[str]) -> list[str]:  # type: ignore[override]
        """Restore square images (base64, any format that `diffbfr restore` reads) to base64 of PNGs."""
        files = [base64.b64decode(text, validate=True) for text in model_input]
        restored: list[bytes] = []
        for i in range(0, len(files), _BATCH):
            restored += self._restore(files[i : i + _BATCH])
        return [base64.b64encode(png).decode() for png in restored]

    def _restore(self, files: list[bytes]) -> list[bytes]:
        from diffbfr.images import decode, encode_png, lq_to_model, to_pixels, to_tensor
        from diffbfr.keys import noise_key

        x_0 = to_tensor([lq_to_model(decode(data).pixels, self._cascade.lq_px) for data in files])
        noise_keys = [noise_key(hashlib.sha256(data).hexdigest()) for data in files]
        return [encode_png(pixels) for pixels in to_pixels(self._cascade.restore(x_0, noise_keys).tem)]


set_model(CascadeModel())
