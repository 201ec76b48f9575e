"""The journal of a run under way: read into the index, and kept short by segments."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.journal import COMMITS, Damaged, read_journal, record_of, replace_records
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.request import RestoreRequest

RECORDS_PER_SEGMENT: Final = 256
"""Small records that are replaced by one segment; fewer than that are left as they are."""


@dataclass(frozen=True)
class KnownJournal:
    """What was read: the requests named, the small records, the files that cannot be used with the reason.

    The outcomes of the small records are the first `num_small` of the index.
    """

    requests: frozenset[RestoreRequest]
    records: tuple[str, ...]
    damaged: Mapping[str, str]
    num_small: int


def load_journal(output: str, index: ArchiveIndex) -> KnownJournal:
    """Read everything that is committed into an index without outcomes."""
    requests: set[RestoreRequest] = set()
    records: list[str] = []
    damaged: dict[str, str] = {}
    first, record, num_small = 0, "", 0
    for part in read_journal(output):
        if part.record != record:
            record, first = part.record, index.last_outcome()
        if isinstance(part, Damaged):
            # some of a segment may have been read before it turned out to be damaged
            index.forget_known(first)
            damaged[part.record] = part.reason
            continue
        index.add_known(part.values)
        requests |= part.requests
        if record.startswith(f"{COMMITS}/"):
            records.append(record)
            num_small = index.last_outcome()
    return KnownJournal(frozenset(requests), tuple(records), damaged, num_small)


class OpenJournal:
    """Takes the reports of finished units, and replaces their records by a segment when there are many."""

    def __init__(
        self, output: str, request: RestoreRequest, index: ArchiveIndex, known: KnownJournal
    ) -> None:
        self._output = output
        self._request = request
        self._index = index
        self.damaged = known.damaged
        if len(known.records) >= RECORDS_PER_SEGMENT:
            values = index.values_between(0, known.num_small)
            replace_records(output, known.records, values, request)
            self._records: list[str] = []
        else:
            self._records = list(known.records)
        self._num_small = 0 if not self._records else known.num_small
        self._last = index.last_outcome()

    def add(self, outcomes: tuple[Outcome, ...]) -> None:
        """Take the outcomes of a unit whose record is written."""
        self._index.add(outcomes, time.time())
        self._records.append(record_of(outcomes))
        if len(self._records) >= RECORDS_PER_SEGMENT:
            self._replace()

    def _replace(self) -> None:
        last = self._index.last_outcome()
        early = self._index.values_between(0, self._num_small)
        values = chain(early, self._index.values_between(self._last, last))
        # a unit that was restored again has its old record's name
        replace_records(self._output, dict.fromkeys(self._records), values, self._request)
        self._records, self._num_small, self._last = [], 0, last
