"""What became of each input of a restoration, committed in small units: the memory of `restore` between runs.

A unit's record is written after its outputs. An outcome stands as long as its input is the one that was
listed and its output has its size; what failed never stands, so the same command tries it again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.sources import PhotoRef

CONTROL: Final = ".diffbfr"
"""Folder inside the output that holds what is not for the user: the pinned request and the units' records."""

UNREADABLE: Final = "unreadable"
"""Reason of an input whose bytes could not be had; it may be readable another day."""

_COMMITS: Final = f"{CONTROL}/commits"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ledger row, with what tells whether it still holds: the input's fingerprint and the size of the
    output.

    `others` are the further files of several restorations and their sizes.
    """

    row: LedgerRow
    fingerprint: str
    output_bytes: int
    others: tuple[tuple[str, int], ...] = ()

    def stands(self, ref: PhotoRef, output_sizes: Mapping[str, int]) -> bool:
        """Tell whether this input needs no more work."""
        if (
            self.row.status == "failed"
            or self.row.reason == UNREADABLE
            or self.fingerprint != ref.fingerprint
        ):
            return False
        return all(output_sizes.get(name) == num_bytes for name, num_bytes in self.files())

    def files(self) -> tuple[tuple[str, int], ...]:
        """Every file of this outcome with its size; none where nothing was restored."""
        return ((self.row.output, self.output_bytes), *self.others) if self.row.output else ()


def commit_unit(output_uri: str, outcomes: Iterable[Outcome]) -> None:
    """Write a unit's record, named after its inputs; a later attempt at the same inputs replaces it."""
    rows = [asdict(outcome) for outcome in outcomes]
    inputs = json.dumps([[row["row"]["name"], row["fingerprint"]] for row in rows])
    unit = hashlib.sha256(inputs.encode()).hexdigest()[:20]
    storage.write_json(storage.join(output_uri, _COMMITS, f"{unit}.json"), rows)


def read_units(output_uri: str) -> Iterator[Outcome]:
    """Read every committed outcome, in no useful order; an input may have several."""
    for name in storage.list_dir(storage.join(output_uri, _COMMITS)):
        uri = storage.join(output_uri, _COMMITS, name)
        try:
            for value in storage.read_json(uri):
                others = tuple((str(name), int(num_bytes)) for name, num_bytes in value["others"])
                yield Outcome(LedgerRow(**value["row"]), value["fingerprint"], value["output_bytes"], others)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{uri} is no record of restored photos ({error!r}); expected the JSON that restore writes; "
                "remove it and run again"
            ) from error
