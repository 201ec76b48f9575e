"""The inputs whose files `diffbfr restore --verify` found to differ; the next run restores them again."""

from collections.abc import Iterable
from typing import Final

from diffbfr.shards import ShardDamagedError
from pipelines import storage
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.restoration.request import CONTROL

_DAMAGED: Final = f"{CONTROL}/damaged.json"


def write_damage(output: str, names: Iterable[str]) -> None:
    """Note the inputs to restore again, in place of what was noted before."""
    noted = sorted(set(names))
    if noted:
        write_checksummed_json(storage.join(output, _DAMAGED), {"inputs": noted}, within=output)
    else:
        clear_damage(output)


def read_damage(output: str) -> frozenset[str]:
    """The inputs to restore again; `ShardDamagedError` if the note itself is damaged."""
    place = storage.join(output, _DAMAGED)
    try:
        return frozenset(map(str, read_checksummed_json(place)["inputs"]))
    except FileNotFoundError:
        return frozenset()
    except (KeyError, TypeError) as error:
        raise ShardDamagedError(f"{place} is damaged; expected the names of inputs") from error


def clear_damage(output: str) -> None:
    """Remove the note, once its inputs are restored again."""
    storage.remove_file(storage.join(output, _DAMAGED), within=output)
