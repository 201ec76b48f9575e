"""The committed outcomes of a restoration, one for each input, from which a later run resumes.

Outcomes are committed in units of a few photos. A unit's record is written after its outputs. An outcome is
current as long as its input is unchanged and its output has the recorded size. A failed outcome is never
current, so the same command retries it.
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
"""Folder inside the output for internal files: the pinned request and the units' records."""

UNREADABLE: Final = "unreadable"
"""Reason of an input whose bytes could not be read; a later run tries it again."""

_COMMITS: Final = f"{CONTROL}/commits"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ledger row, with the input's fingerprint and the output's size, which show whether it is current.

    `others` are the names and sizes of the further files if there are several samples.
    """

    row: LedgerRow
    fingerprint: str
    output_bytes: int
    others: tuple[tuple[str, int], ...] = ()

    def is_current(self, ref: PhotoRef, output_sizes: Mapping[str, int]) -> bool:
        """Whether this input, as it is listed now, needs no more work."""
        if (
            self.row.status == "failed"
            or self.row.reason == UNREADABLE
            or self.fingerprint != ref.fingerprint
        ):
            return False
        return all(output_sizes.get(name) == num_bytes for name, num_bytes in self.files())

    def files(self) -> tuple[tuple[str, int], ...]:
        """Name and size of every output file; empty if nothing was restored."""
        return ((self.row.output, self.output_bytes), *self.others) if self.row.output else ()


def commit_unit(output_uri: str, outcomes: Iterable[Outcome]) -> None:
    """Write a unit's record, named by a digest of its inputs; a retry with the same inputs overwrites it."""
    rows = [asdict(outcome) for outcome in outcomes]
    # the name follows from the inputs, so that a retry writes to the same record
    inputs = json.dumps([[row["row"]["name"], row["fingerprint"]] for row in rows])
    unit = hashlib.sha256(inputs.encode()).hexdigest()[:20]
    storage.write_json(storage.join(output_uri, _COMMITS, f"{unit}.json"), rows)


def read_units(output_uri: str) -> Iterator[Outcome]:
    """Read every committed outcome, in no particular order; an input may have several."""
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
