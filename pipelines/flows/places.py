"""Whether every node of a joined cluster has the places of the work as the driver has them.

A path of the driver's disk names nothing on another machine, or something else. Without this check a worker
would find each photo unreadable, and blame the photo.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from diffbfr.errors import UsageError, one_line
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError
from pipelines.storage.drafts import draft_name

_NUM_TRIED: Final = 8
_ADVICE: Final = "copy it to s3:// or to a folder that every node mounts at the same path"


@dataclass(frozen=True)
class PlaceTask:
    """The places to try on a node: a folder to write with a file of the driver in it, and photos to read."""

    output: str
    mark: str
    photos: tuple[tuple[PhotoSource, PhotoRef], ...]


def require_places(
    cluster: Cluster, output: str, inputs: Iterable[tuple[PhotoSource, Iterable[PhotoRef]]] = ()
) -> None:
    """UsageError unless each node of a joined cluster has `output` as the driver has it, and the inputs.

    Of each input the first photo is tried that the driver can read.
    """
    if not cluster.is_joined:
        return
    photos = tuple(chain.from_iterable(_readable(source, refs) for source, refs in inputs))
    with marked(output) as mark:
        reports = cluster.on_each_node(try_places, PlaceTask(output, mark, photos))
    if not reports:
        raise UsageError(
            "no node of the cluster has CPUs; expected at least one that takes work; add a worker"
        )
    for report in reports:
        reason = one_line(report.error) if report.error is not None else report.report
        if reason:
            failing = sum(bool(other.error or other.report) for other in reports)
            raise UsageError(
                f"{failing} of {len(reports)} nodes cannot work (first: {report.node}): {reason}"
            )


def try_places(task: PlaceTask) -> str:
    """Try the places on a node; what is wrong with them, "" if nothing."""
    try:
        require_mark(task.mark)
        storage.check_writable(task.output, "give that user the right to it")
        for source, ref in task.photos:
            _read(source, ref)
    except UsageError as error:
        return one_line(error)
    return ""


@contextmanager
def marked(place: str) -> Iterator[str]:
    """Yield the address of a small file in a place, by which another machine knows that it has the same."""
    mark = storage.join(place, draft_name())
    storage.write_atomic(mark, secrets.token_bytes(8))
    try:
        yield mark
    finally:
        storage.remove_tree(mark)


def require_mark(mark: str) -> str:
    """Say that the place of a mark is the driver's; UsageError if it is not."""
    if not storage.exists(mark):
        raise UsageError(
            f"{mark.rpartition('/')[0]} is on the driver's disk alone; expected the same files there; "
            f"{_ADVICE}"
        )
    return "the driver's"


def _readable(source: PhotoSource, refs: Iterable[PhotoRef]) -> tuple[tuple[PhotoSource, PhotoRef], ...]:
    """The first photo that the driver can read, if one of the first few can be read."""
    for ref in islice((ref for ref in refs if not ref.skipped), _NUM_TRIED):
        try:
            source.read(ref)
        except PhotoUnreadableError:
            continue
        return ((source, ref),)
    return ()


def _read(source: PhotoSource, ref: PhotoRef) -> None:
    try:
        source.read(ref)
    except (PhotoUnreadableError, OSError, storage.PlaceError) as error:
        raise UsageError(
            f"{source.uri} is not there as on the driver ({one_line(error)}); expected the same photos; "
            f"{_ADVICE}"
        ) from error
