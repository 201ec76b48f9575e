"""The output folder of a restoration: how it is begun or taken over, and what is removed at the end."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from diffbfr.errors import UsageError, one_line
from diffbfr.shards import ShardDamagedError
from diffbfr.text import shown
from pipelines import storage
from pipelines.restoration.access import folder_mode
from pipelines.restoration.damage import read_damage
from pipelines.restoration.outcomes import CommittedUnits, Outcome, read_units
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


def open_output(output: str, request: RestoreRequest) -> CommittedUnits:
    """Begin or take over the output folder; returns what earlier runs committed there."""
    storage.make_folder(output, folder_mode(request.input))
    storage.reopen_folder(output)
    storage.check_writable(output, "name another output")
    units = read_units(output)
    mended = pin_request(output, request, units.requests)
    if mended:
        say(mended)
    if units.damaged:
        name, reason = next(iter(units.damaged.items()))
        say(
            f"{len(units.damaged)} records of {output} cannot be used (first: {name}: {reason}); their "
            "photos are restored again"
        )
    return units


def noted_damage(output: str) -> frozenset[str]:
    """The inputs that a check of the output named."""
    try:
        return read_damage(output)
    except ShardDamagedError as error:
        say(f"{one_line(error)}; what the last check found is lost: run `diffbfr restore --verify` again")
        return frozenset()


def remove_outdated(output: str, known: Iterable[Outcome], outcomes: Mapping[str, Outcome]) -> None:
    """Remove the images of inputs that changed and gave no new image, so that no stale image remains."""
    before = _files(outcome for outcome in known if outcome.row.name in outcomes)
    for stale in sorted(before - _files(outcomes.values())):
        storage.remove_file(storage.join(output, stale), within=output)


def _files(outcomes: Iterable[Outcome]) -> set[str]:
    """Names of all output files."""
    names: set[str] = set()
    for outcome in outcomes:
        names.update(file.name for file in outcome.files())
    return names


def say(line: str) -> None:
    """Write a line that is no result to standard error; names in it may come from somebody else."""
    sys.stderr.write(f"diffbfr: {shown(line)}\n")
