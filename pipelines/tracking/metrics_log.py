"""A durable log of a training's metrics: a killed training keeps what it reported, each step once.

While the training runs, the records lie in segments in a folder beside the log. Only the newest segment is
rewritten as it fills, so a record costs the same after a week as in the first minute, also on S3, which
cannot append. At the end all segments become one file.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

from diffbfr.errors import one_line
from pipelines import storage
from pipelines.cluster.protocol import Metrics

_WRITE_EVERY_S: Final = 10.0
_SEGMENT_RECORDS: Final = 256
_LAST_TRIES: Final = 3
_LAST_PAUSE_S: Final = 1.0


@dataclass(frozen=True)
class MetricRecord:
    """Metrics of a training at a step: samples seen, name -> value, and the time (ms since 1970)."""

    step: int
    samples: int
    values: Mapping[str, float]
    time_ms: int = 0


class MetricsLog:
    """Context manager with a thread that writes new records to `path` every `every_s` seconds.

    The thread calls `on_metrics` with records after they are on disk, so they can be sent again after a
    crash. Disk errors (full, or S3 unreachable) are retried and never fail the training; at the end
    `on_metrics` gets all records, also those that could not be written.
    """

    def __init__(
        self,
        path: str,
        on_metrics: Callable[[Sequence[MetricRecord]], None] = lambda records: None,
        every_s: float = _WRITE_EVERY_S,
    ) -> None:
        self._path = path
        self._on_metrics = on_metrics
        self._every_s = every_s
        self._records = read_metrics_log(path)
        self._num_written = len(self._records)
        self._num_in_full_segments = len(self._records)
        segments = storage.list_dir(_segments_dir(path))
        self._segment = 1 + int(segments[-1].removesuffix(".json")) if segments else 0
        self._closing = threading.Event()
        self._writable = True
        self._thread = threading.Thread(target=self._run, name="metrics-log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        for attempt in count(1):
            # After an exception the segments stay: the training is resumed.
            if self._try(self._write) and (kind is not None or self._try(self._join_segments)):
                return
            if attempt == _LAST_TRIES:
                break
            time.sleep(_LAST_PAUSE_S)
        if self._num_written < len(self._records):
            self._on_metrics(self._records[self._num_written :])

    def add(self, metrics: Metrics) -> None:
        """Add a record and return at once. A step that an earlier attempt reported already is ignored."""
        if not self._records or metrics.step > self._records[-1].step:
            now_ms = int(time.time() * 1000)
            self._records.append(MetricRecord(metrics.step, metrics.samples, metrics.values, now_ms))

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self._try(self._write)

    def _try(self, write: Callable[[], None]) -> bool:
        """Whether the write succeeded. The first error of a row is logged."""
        try:
            write()
        except Exception as error:
            # Storage clients raise errors of many kinds, and each means that nothing was written.
            if self._writable:
                logger = logging.getLogger(__name__)
                logger.warning("%s cannot be written, it is tried again: %s", self._path, one_line(error))
            self._writable = False
            return False
        self._writable = True
        return True

    def _write(self) -> None:
        """Write new records to the current segment, and begin the next one when it is full."""
        while self._num_written < len(self._records):
            start = self._num_in_full_segments
            segment = self._records[start : start + _SEGMENT_RECORDS]
            _write_records(storage.join(_segments_dir(self._path), f"{self._segment:06d}.json"), segment)
            new = segment[self._num_written - start :]
            self._num_written = start + len(segment)
            if len(segment) == _SEGMENT_RECORDS:
                self._num_in_full_segments = self._num_written
                self._segment += 1
            self._on_metrics(new)

    def _join_segments(self) -> None:
        _write_records(self._path, self._records)
        storage.remove_tree(_segments_dir(self._path))


def read_metrics_log(path: str) -> list[MetricRecord]:
    """The records that were written, by step; empty if there is no log."""
    files = [path] if storage.exists(path) else []
    files += [storage.join(_segments_dir(path), name) for name in storage.list_dir(_segments_dir(path))]
    records: list[MetricRecord] = []
    for file in files:
        written: list[dict[str, Any]] = storage.read_json(file)
        for values in written:
            if not records or values["step"] > records[-1].step:
                records.append(MetricRecord(**values))
    return records


def _segments_dir(path: str) -> str:
    return path.removesuffix(".json")


def _write_records(path: str, records: Sequence[MetricRecord]) -> None:
    storage.write_json(path, [asdict(record) for record in records])
