"""The files uploaded for a version: those of its stages, and for a cascade the code that serves it."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import diffbfr
from diffbfr.documents import check_values
from diffbfr.errors import UsageError
from pipelines.recipes.settings_file import parse_yaml

SERVED: Final = "pyfunc_model.py"
_MAX_MLMODEL: Final = 1 << 18
CASCADE_PATH: Final = "artifacts/cascade"
"""Folder of a cascade's safetensors within its MLflow model."""


def copy_files(files: Sequence[Path], target: Path) -> Path:
    """Copy files into a new folder; UsageError if one is missing."""
    target.mkdir()
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"{path.parent} holds no {path.name}; expected it beside the stages; build the cascade again"
            )
        shutil.copyfile(path, target / path.name)
    return target


def save_served(cascade: Path, target: Path, digest: str, licences: Sequence[str] = ()) -> Path:
    """Write the cascade as an MLflow model, without the paths of this machine that MLflow puts into it.

    Its metadata has the digest, and the licences of weights that others trained.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(Path(__file__).with_name(SERVED)),
        artifacts={"cascade": str(cascade)},
        pip_requirements=[f"diffbfr=={diffbfr.__version__}"],
        metadata={"digest": digest} | ({"licences": list(licences)} if licences else {}),
    )
    model = Model.load(str(target))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = SERVED
    flavor["artifacts"]["cascade"]["uri"] = CASCADE_PATH
    model.save(str(target / "MLmodel"))
    return target


def served_tags(model: Path) -> dict[str, str]:
    """Tags of a cascade version: its signature, and the SHA-256 of the code that serves it."""
    from mlflow.models import Model

    # anyone may have written it, and MLflow reads it without limits
    check_values(parse_yaml((model / "MLmodel").read_text()[:_MAX_MLMODEL]))
    signature = Model.load(str(model)).signature
    as_json = json.dumps(signature.to_dict() if signature is not None else None, sort_keys=True)
    return {
        "served.signature": as_json,
        "served.code": hashlib.sha256((model / SERVED).read_bytes()).hexdigest(),
    }
