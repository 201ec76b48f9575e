"""Artifacts: what a step made, under an id that says what it was made from; and the plan that tells what must run again, and why.

An artifact is `ROOT/artifacts/<step>/<id>/` with its files and `record.json`, written last. The id is a digest of the step's name, the
configuration that changes its result, the ids of its inputs and the code that it reaches. Where it ran is not in it. Inputs
are ids, so that a whole plan is computed without running anything.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.code_identity import code_digests

__all__ = ["ArtifactStore", "Decision", "Identity", "Lineage", "OutputRef", "Record", "code_digests", "decide", "flatten", "lineage"]

JSON = Any
RECORD = "record.json"
_ID_DIGITS = 20
_SHOWN_DIGITS = 12
_NUM_REASONS = 3
_STEP = re.compile(r"[a-z0-9][a-z0-9_-]*")
_ABSENT = "absent"


@dataclass(frozen=True)
class Identity:
    """All that an artifact's content depends on.

    `config`: dotted path -> JSON value (see `flatten`); `inputs`: name -> artifact id or digest; `code`: module -> digest.
    """

    step: str
    config: Mapping[str, JSON]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    def __post_init__(self) -> None:
        if not _STEP.fullmatch(self.step):
            raise UsageError(f"a step is called {self.step!r}; expected small letters, digits, - and _, for it names a folder")
        for name in ("config", "inputs", "code"):  # as a record reads them back, so that old and new compare
            object.__setattr__(self, name, json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False)))

    @cached_property
    def id(self) -> str:
        """20 hex digits."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]


@dataclass(frozen=True)
class OutputRef:
    """One file of an artifact; the path is relative to its folder, with `../` for a file in another one (a column in its dataset)."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What was made, from what, when (UTC, ISO), how long it took, and facts worth telling (counts, losses)."""

    identity: Identity
    outputs: Mapping[str, OutputRef]
    facts: Mapping[str, JSON]
    seconds: float
    created: str


@dataclass(frozen=True)
class Decision:
    """What the plan says of a step."""

    step: str
    action: Literal["HIT", "RUN"]
    reason: str
    identity: Identity


@dataclass(frozen=True)
class Lineage:
    """An artifact and what it came from. `record` is None for what lies outside of the store, such as the photos."""

    name: str
    id: str
    record: Record | None = None
    inputs: tuple["Lineage", ...] = field(default=())

    def to_json(self) -> JSON:
        """Nested plain values."""
        made: dict[str, JSON] = {"name": self.name, "id": self.id}
        if self.record is not None:
            made |= {
                "step": self.record.identity.step,
                "created": self.record.created,
                "seconds": self.record.seconds,
                "facts": dict(self.record.facts),
                "inputs": [source.to_json() for source in self.inputs],
            }
        return made


class ArtifactStore:
    """The artifacts under one root, local or on S3."""

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)

    def folder(self, identity: Identity) -> str:
        """Where the artifact lies, or will."""
        return storage.join(self.root, "artifacts", identity.step, identity.id)

    def find(self, identity: Identity) -> Record | None:
        """The finished artifact; None if it was not finished, or if one of its files is gone or has another size."""
        record = self._read(identity.step, identity.id)
        return record if record is not None and self.damage(record) is None else None

    def by_id(self, artifact_id: str) -> Record | None:
        """The record with this id, whatever the step."""
        found = (self._read(step, artifact_id) for step in storage.list_dir(storage.join(self.root, "artifacts")))
        return next((record for record in found if record is not None), None)

    def latest(self, step: str) -> Record | None:
        """The step's newest record."""
        names = storage.list_dir(storage.join(self.root, "artifacts", step))
        records = [record for name in names if (record := self._read(step, name)) is not None]
        return max(records, key=lambda record: record.created, default=None)

    def damage(self, record: Record) -> str | None:
        """What is wrong with the files of a finished artifact: `output weights is missing`; None if nothing is."""
        folder = self.folder(record.identity)
        there = {entry.path: entry.num_bytes for entry in storage.walk(folder)} if storage.is_remote(folder) else None
        for name, output in sorted(record.outputs.items()):
            inside = there is not None and not output.path.startswith("../")
            num_bytes = there.get(output.path) if there is not None and inside else _size(_place(folder, output.path))
            if num_bytes is None:
                return f"output {name} is missing"
            if num_bytes != output.num_bytes:
                return f"output {name} has {num_bytes} bytes, recorded {output.num_bytes}"
        return None

    def commit(self, identity: Identity, outputs: Mapping[str, str | OutputRef], facts: Mapping[str, JSON], seconds: float) -> Record:
        """Seal an artifact whose files are in its folder: digests, then `record.json`, last. Outputs given as a path are read for it."""
        folder = self.folder(identity)
        sealed = {name: output if isinstance(output, OutputRef) else _seal(folder, output) for name, output in outputs.items()}
        record = Record(identity, sealed, dict(facts), seconds, datetime.now(UTC).isoformat(timespec="microseconds"))
        storage.write_json(storage.join(folder, RECORD), {"id": identity.id, **dataclasses.asdict(record)})
        return record

    def _read(self, step: str, name: str) -> Record | None:
        place = storage.join(self.root, "artifacts", step, name, RECORD)
        try:
            values = storage.read_json(place)
            outputs = {key: OutputRef(**output) for key, output in values["outputs"].items()}
            return Record(Identity(**values["identity"]), outputs, values["facts"], values["seconds"], values["created"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{place} cannot be read as a record ({error}); expected what a step wrote; remove its folder") from error


def decide(store: ArtifactStore, identity: Identity) -> Decision:
    """HIT if the artifact is there and whole; else RUN, with what differs from the step's newest record, to the field."""
    record = store._read(identity.step, identity.id)
    if record is not None:
        damage = store.damage(record)
        return Decision(identity.step, "RUN" if damage else "HIT", damage or "nothing changed", identity)
    newest = store.latest(identity.step)
    if newest is None:
        return Decision(identity.step, "RUN", "first run", identity)
    reasons = list(_differences(newest.identity, identity))
    more = f"; and {len(reasons) - _NUM_REASONS} more" if len(reasons) > _NUM_REASONS else ""
    return Decision(identity.step, "RUN", "; ".join(reasons[:_NUM_REASONS]) + more, identity)


def lineage(store: ArtifactStore, record: Record, name: str = "") -> Lineage:
    """An artifact with all that it came from, back to what no step made."""
    inputs = []
    for input_name, input_id in record.identity.inputs.items():
        found = store.by_id(input_id)
        inputs.append(lineage(store, found, input_name) if found is not None else Lineage(input_name, input_id))
    return Lineage(name or record.identity.step, record.identity.id, record, tuple(inputs))


def flatten(config: Any, prefix: str = "") -> dict[str, JSON]:
    """A frozen dataclass (or mapping) as dotted path -> JSON value; tuples stay whole, as lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        flat: dict[str, JSON] = {}
        for name, value in config.items():
            flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    return {prefix: json.loads(json.dumps(config))}


def _differences(before: Identity, now: Identity) -> Iterator[str]:
    for path, old, new in _changes(before.config, now.config):
        yield f"config {path}: {_show(old)} -> {_show(new)}"
    for name, old, new in _changes(before.inputs, now.inputs):
        yield f"input {name}: {str(old)[:_SHOWN_DIGITS]} -> {str(new)[:_SHOWN_DIGITS]}"
    for module, old, new in _changes(before.code, now.code):
        yield f"code {module} {'is new' if old == _ABSENT else 'is gone' if new == _ABSENT else 'changed'}"


def _changes(before: Mapping[str, JSON], now: Mapping[str, JSON]) -> Iterator[tuple[str, JSON, JSON]]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if old != new:
            yield name, old, new


def _show(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _seal(folder: str, path: str) -> OutputRef:
    uri = _place(folder, path)
    if not storage.exists(uri):
        raise UsageError(f"{uri} is not there; expected the step to have written it; run the same command again")
    return OutputRef(path, storage.size(uri), storage.digest(uri))


def _place(folder: str, path: str) -> str:
    """Where an output lies; on S3 a key has no `..`, so they are walked here."""
    while path.startswith("../"):
        folder, path = folder.rpartition("/")[0], path[3:]
    return storage.join(folder, path)


def _size(place: str) -> int | None:
    try:
        return storage.size(place)
    except FileNotFoundError:
        return None
