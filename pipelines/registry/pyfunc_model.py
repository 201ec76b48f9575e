"""The model code inside a registered cascade: photos of faces in, restored faces out, both as base64.

MLflow stores this file with the version and runs it on load ("models from code"), so a version holds no
pickle. A face gets the same noise, and so the same restoration, as from `diffbfr restore --aligned`.
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
        """Restore square pictures of any format that `diffbfr restore` reads; PNG comes back."""
        files = [base64.b64decode(text, validate=True) for text in model_input]
        return [
            base64.b64encode(png).decode()
            for i in range(0, len(files), _BATCH)
            for png in self._restore(files[i : i + _BATCH])
        ]

    def _restore(self, files: list[bytes]) -> list[bytes]:
        from diffbfr.images import decode, encode_png, lq_to_model, to_pixels, to_tensor
        from diffbfr.keys import noise_key

        x_0 = to_tensor([lq_to_model(decode(data).pixels, self._cascade.lq_px) for data in files])
        noise_keys = [noise_key(hashlib.sha256(data).hexdigest()) for data in files]
        return [encode_png(pixels) for pixels in to_pixels(self._cascade.restore(x_0, noise_keys).tem)]


set_model(CascadeModel())
