"""The output folder of a restoration: how it is begun or taken over, and what is removed at the end."""

import sys
from pathlib import Path

from diffbfr.errors import UsageError, one_line
from diffbfr.shards import ShardDamagedError
from diffbfr.text import shown
from pipelines import storage
from pipelines.restoration.access import folder_mode
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.damage import read_damage
from pipelines.restoration.open_journal import OpenJournal, load_journal
from pipelines.restoration.request import RestoreRequest, pin_request


def check_output_outside_input(source: str, output: str) -> None:
    """Refuse an output folder inside the input, because the next run would list its files as photos."""
    inside = output == source or output.startswith(f"{source.rstrip('/')}/")
    if not storage.is_remote(source) and not storage.is_remote(output):
        place = Path(output).resolve()
        inside = inside or place.is_relative_to(Path(source).resolve())
    if inside:
        raise UsageError(
            f"the output {output} lies inside the input {source}; expected a folder outside it; name another"
        )


def open_output(output: str, request: RestoreRequest, index: ArchiveIndex) -> OpenJournal:
    """Begin or take over the output folder; what earlier runs committed there goes into the index."""
    storage.make_folder(output, folder_mode(request.input))
    storage.reopen_folder(output)
    storage.check_writable(output, "name another output")
    known = load_journal(output, index)
    mended = pin_request(output, request, known.requests)
    if mended:
        say(mended)
    if known.damaged:
        record, reason = next(iter(known.damaged.items()))
        say(
            f"{len(known.damaged)} records of {output} cannot be used (first: {record.rpartition('/')[2]}: "
            f"{reason}); their photos are restored again"
        )
    return OpenJournal(output, request, index, known)


def noted_damage(output: str) -> frozenset[str]:
    """The inputs that a check of the output named."""
    try:
        return read_damage(output)
    except ShardDamagedError as error:
        say(f"{one_line(error)}; what the last check found is lost: run `diffbfr restore --verify` again")
        return frozenset()


def remove_outdated(output: str, index: ArchiveIndex) -> None:
    """Remove the images of inputs that changed and gave no new image, so that no stale image remains."""
    for stale in index.outdated_files():
        storage.remove_file(storage.join(output, stale), within=output)


def say(line: str) -> None:
    """Write a line that is no result to standard error; names in it may come from somebody else."""
    sys.stderr.write(f"diffbfr: {shown(line)}\n")
