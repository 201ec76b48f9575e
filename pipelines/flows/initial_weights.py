"""The registered weights that a training starts from, brought to where its workers find them."""

from pathlib import Path

from pipelines import storage
from pipelines.recipes.recipe import Recipe


def find_initial(recipe: Recipe, root: str, ref: str) -> str:
    """Folder of a registered stage or cascade, by NAME@ALIAS; below the root if that is on S3.

    UsageError if there is none. Its digest is checked.
    """
    from pipelines.registry import fetch, get_version
    from pipelines.tracking.connection import open_registry

    registry = open_registry(root, recipe.tracking.uri, recipe.tracking.experiment)
    version = get_version(registry, ref)
    folder = fetch(registry, version, storage.cache_folder("models"))
    if not storage.is_remote(root):
        return str(folder)
    place = storage.join(root, "initial", version.digest[:12])
    if not storage.exists(place):
        storage.put_tree(Path(folder), place)
    return place
