"""The registered weights that a training starts from."""

from pipelines import storage
from pipelines.recipes.recipe import Recipe


def find_initial(recipe: Recipe, root: str, ref: str) -> str:
    """Folder on this machine of a registered stage or cascade, by NAME@ALIAS or NAME@VERSION.

    UsageError if there is none. Its digest is checked.
    """
    from pipelines.registry import fetch, get_version
    from pipelines.tracking.connection import open_registry

    registry = open_registry(root, recipe.tracking.uri, recipe.tracking.experiment)
    return str(fetch(registry, get_version(registry, ref), storage.cache_folder("models")))
