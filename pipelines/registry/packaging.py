"""What is uploaded for a version: copies of the files of its stages, and for a cascade the code that
serves them.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import diffbfr
from diffbfr.errors import UsageError

SERVED: Final = "pyfunc_model.py"
CASCADE_PATH: Final = "artifacts/cascade"
"""Where the safetensors of a cascade lie in its MLflow model."""


def copy_files(files: Sequence[Path], target: Path) -> Path:
    """Copy files into a new folder."""
    target.mkdir()
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"{path.parent} holds no {path.name}; expected it beside the stages; build the cascade again"
            )
        shutil.copyfile(path, target / path.name)
    return target


def save_served(cascade: Path, target: Path, digest: str) -> Path:
    """Write the cascade as an MLflow model; the paths of this machine, which MLflow would keep in it, are
    taken out.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(Path(__file__).with_name(SERVED)),
        artifacts={"cascade": str(cascade)},
        pip_requirements=[f"diffbfr=={diffbfr.__version__}"],
        metadata={"digest": digest},
    )
    model = Model.load(str(target))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = SERVED
    flavor["artifacts"]["cascade"]["uri"] = CASCADE_PATH
    model.save(str(target / "MLmodel"))
    return target


def served_tags(model: Path) -> dict[str, str]:
    """What a cascade version promises its callers, as tags: its signature, and the digest of the code that
    answers them.
    """
    from mlflow.models import Model

    signature = Model.load(str(model)).signature
    promised = json.dumps(signature.to_dict() if signature is not None else None, sort_keys=True)
    return {
        "served.signature": promised,
        "served.code": hashlib.sha256((model / SERVED).read_bytes()).hexdigest(),
    }
