"""The cascade that `--model` names, and the registry that holds it."""

from typing import TYPE_CHECKING

from diffbfr.errors import UsageError
from diffbfr.packaged import packaged_folder, packaged_names

if TYPE_CHECKING:
    from pipelines.execution.model_ref import ModelRef
    from pipelines.tracking.connection import Registry


def pin(model: str, root: str, tracking: str | None) -> "ModelRef":
    """Find the cascade and pin its digest; workers refuse a folder with another digest.

    `model` is the name of one in the package, NAME@ALIAS of the registry or a folder; UsageError if there is
    no such cascade.
    """
    from pipelines import storage
    from pipelines.execution.model_ref import pin_model

    if model in packaged_names():
        return pin_model(packaged_folder(model))
    if "@" in model and not storage.exists(model):
        from pipelines.registry import resolve

        return pin_model(resolve(model, open_existing(root, tracking), storage.cache_folder("models")).folder)
    if not storage.exists(model):
        raise UsageError(
            f"no cascade at {model}; expected {' or '.join(packaged_names())}, NAME@ALIAS of the registry or "
            "a folder with one; correct --model"
        )
    return pin_model(model)


def open_existing(root: str, tracking: str | None) -> "Registry":
    """The registry of a root; UsageError if there is none yet, instead of making an empty one."""
    from pipelines import storage
    from pipelines.tracking.connection import open_registry

    database = storage.join(root, "mlflow.db")
    if tracking is None and not storage.exists(database):
        raise UsageError(
            f"no registry at {database}; expected what `diffbfr run --root {root}` makes; correct --root, or "
            "name --tracking"
        )
    return open_registry(root, tracking)
