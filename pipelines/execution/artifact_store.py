"""Artifacts: what a step made, under an id that says what it was made from; and the plan that tells what must
run again, and why.

An artifact is `ROOT/artifacts/<step>/<id>/` with its files and `record.json`, written last. The id is a
digest of the step's name, the configuration that changes its result, the ids of its inputs and the code that
it reaches. Where it ran is not in it. Inputs are ids, so that a whole plan is computed without running
anything.

An id says what a step should hold, a record what it does: the digest of every output, and of every input as
it was when it was read. A file is read again for its digest when its time or ETag is another than when it was
last found whole (`verified.json`, which anyone may delete).
"""

import contextlib
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

JSON = Any
RECORD = "record.json"
VERIFIED = "verified.json"
_ID_DIGITS = 20
_SHOWN_DIGITS = 12
_NUM_REASONS = 3
_STEP = re.compile(r"[a-z0-9][a-z0-9_-]*")
_ABSENT = "absent"


@dataclass(frozen=True)
class Identity:
    """All that an artifact's content depends on.

    `config`: dotted path -> JSON value (see `flatten`); `inputs`: name -> artifact id or digest; `code`:
    module -> digest.
    """

    step: str
    config: Mapping[str, JSON]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    def __post_init__(self) -> None:
        if not _STEP.fullmatch(self.step):
            raise UsageError(
                f"a step is called {self.step!r}; expected small letters, digits, - and _, for it names a "
                "folder"
            )
        for name in ("config", "inputs", "code"):  # as a record reads them back, so that old and new compare
            object.__setattr__(self, name, json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False)))

    @cached_property
    def id(self) -> str:
        """20 hex digits."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]


@dataclass(frozen=True)
class OutputRef:
    """One file of an artifact; the path is relative to its folder, with `../` for a file in another one (a
    column in its dataset).
    """

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What was made, from what, when (UTC, ISO), how long it took, and metadata worth telling (counts,
    losses).

    `content` is a digest of what later steps see of it, without times and places; `sources` that of each
    input which a step made, when it was read. Older records have neither.
    """

    identity: Identity
    outputs: Mapping[str, OutputRef]
    metadata: Mapping[str, JSON]
    seconds: float
    created: str
    content: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What the plan says of a step."""

    step: str
    action: Literal["HIT", "RUN"]
    reason: str
    identity: Identity


class ArtifactStore:
    """The artifacts under one root, local or on S3."""

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)
        self._step_of: dict[str, str] = {}

    def artifact_dir(self, identity: Identity) -> str:
        """Where the artifact lies, or will."""
        return storage.join(self.root, "artifacts", identity.step, identity.id)

    def find(self, identity: Identity) -> Record | None:
        """The finished artifact; None if it was not finished, if a file is gone or another, or if an input
        was made again otherwise.
        """
        record = self._read(identity.step, identity.id)
        return record if record is not None and self.problem(record) is None else None

    def by_id(self, artifact_id: str) -> Record | None:
        """The record with this id, whatever the step."""
        known = self._step_of.get(artifact_id)
        for step in [known] if known else storage.list_dir(storage.join(self.root, "artifacts")):
            record = self._read(step, artifact_id)
            if record is not None:
                self._step_of[artifact_id] = step
                return record
        return None

    def latest(self, step: str) -> Record | None:
        """The step's newest record."""
        return max(self.records(step), key=lambda record: record.created, default=None)

    def records(self, step: str) -> list[Record]:
        """Every record of a step."""
        names = storage.list_dir(storage.join(self.root, "artifacts", step))
        return [record for name in names if (record := self._read(step, name)) is not None]

    def referenced_ids(self) -> set[str]:
        """Every id, digest and reference that a record names as an input or a fact: what must not be taken
        for garbage.
        """
        records = [
            record
            for step in storage.list_dir(storage.join(self.root, "artifacts"))
            for record in self.records(step)
        ]
        return {
            value
            for record in records
            for value in (*record.identity.inputs.values(), *record.metadata.values())
            if isinstance(value, str)
        }

    def problem(self, record: Record) -> str | None:
        """Why a finished artifact does not count, in words for a plan: an input that was made again
        otherwise, or a damaged file.
        """
        return self.stale_input(record) or next(
            (f"output {name} {words}" for name, words in self.corruption(record).items()), None
        )

    def stale_input(self, record: Record) -> str | None:
        """The first input that a step has made again since, with another content; None if there is none."""
        for name, content in sorted(record.sources.items()):
            source = self.by_id(record.identity.inputs[name])
            if source is not None and source.content not in ("", content):
                return (
                    f"input {name} was made again otherwise: {content[:_SHOWN_DIGITS]} -> "
                    f"{source.content[:_SHOWN_DIGITS]}"
                )
        return None

    def corruption(self, record: Record, thorough: bool = False) -> dict[str, str]:
        """What is wrong with the files of a finished artifact, by output: `is missing`.

        `thorough` reads every byte, else only those of files that changed since they were last found whole.
        """
        folder = self.artifact_dir(record.identity)
        seen, now, found = self._seen(folder), _versions(folder, record.outputs), {}
        whole: dict[str, str] = {}
        for name, output in sorted(record.outputs.items()):
            if name not in now:
                found[name] = "is missing"
                continue
            num_bytes, version = now[name]
            if num_bytes != output.num_bytes:
                found[name] = f"has {num_bytes} bytes, recorded {output.num_bytes}"
            elif (thorough or seen.get(name) != version) and (
                digest := storage.digest(_place(folder, output.path))
            ) != output.sha256:
                found[name] = (
                    f"has the digest {digest[:_SHOWN_DIGITS]}, recorded {output.sha256[:_SHOWN_DIGITS]}"
                )
            else:
                whole[name] = version
        if not found and whole != seen:
            with contextlib.suppress(OSError):  # a plan may look at a root that it cannot write
                storage.write_json(storage.join(folder, VERIFIED), whole)
        return found

    def clear(self, identity: Identity) -> None:
        """Remove what must not be gone on with: damaged files, which their step would take for whole, or
        all that a moved input made.
        """
        record = self._read(identity.step, identity.id)
        if record is None:
            return
        folder = self.artifact_dir(identity)
        if self.stale_input(record):
            storage.remove_tree(folder)
            return
        for name in self.corruption(record):
            storage.remove_tree(_place(folder, record.outputs[name].path))

    def commit(
        self,
        identity: Identity,
        outputs: Mapping[str, str | OutputRef],
        metadata: Mapping[str, JSON],
        seconds: float,
        content: str | None = None,
    ) -> Record:
        """Seal an artifact whose files are in its folder: digests, then `record.json`, last. Outputs given as
        a path are read for it.

        `content` is the step's own digest of what later steps see; without it, that of all outputs.
        """
        folder = self.artifact_dir(identity)
        sealed = {
            name: output if isinstance(output, OutputRef) else _seal(folder, output)
            for name, output in outputs.items()
        }
        sources = {
            name: made.content
            for name, source in identity.inputs.items()
            if (made := self.by_id(source)) and made.content
        }
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        record = Record(
            identity, sealed, dict(metadata), seconds, created, content or _content(sealed), sources
        )
        versions = {name: version for name, (_, version) in _versions(folder, sealed).items()}
        storage.write_json(storage.join(folder, VERIFIED), versions)
        storage.write_json(storage.join(folder, RECORD), {"id": identity.id, **dataclasses.asdict(record)})
        return record

    def _seen(self, folder: str) -> Mapping[str, str]:
        """Output -> the version in which it was found whole; nothing if nobody looked yet."""
        try:
            seen = storage.read_json(storage.join(folder, VERIFIED))
        except (FileNotFoundError, ValueError):
            return {}
        return seen if isinstance(seen, dict) else {}

    def _read(self, step: str, name: str) -> Record | None:
        place = storage.join(self.root, "artifacts", step, name, RECORD)
        try:
            values = storage.read_json(place)
            outputs = {key: OutputRef(**output) for key, output in values["outputs"].items()}
            made = (
                values["metadata"],
                values["seconds"],
                values["created"],
                values.get("content", ""),
                values.get("sources", {}),
            )
            return Record(Identity(**values["identity"]), outputs, *made)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{place} cannot be read as a record ({error}); expected what a step wrote; remove its folder"
            ) from error


def decide(store: ArtifactStore, identity: Identity) -> Decision:
    """HIT if the artifact is there and whole; else RUN, with what differs from the step's newest record,
    to the field.
    """
    record = store._read(identity.step, identity.id)
    if record is not None:
        problem = store.problem(record)
        return Decision(identity.step, "RUN" if problem else "HIT", problem or "nothing changed", identity)
    newest = store.latest(identity.step)
    if newest is None:
        return Decision(identity.step, "RUN", "first run", identity)
    reasons = list(_differences(newest.identity, identity))
    more = f"; and {len(reasons) - _NUM_REASONS} more" if len(reasons) > _NUM_REASONS else ""
    return Decision(identity.step, "RUN", "; ".join(reasons[:_NUM_REASONS]) + more, identity)


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
        raise UsageError(
            f"{uri} is not there; expected the step to have written it; run the same command again"
        )
    return OutputRef(path, storage.size(uri), storage.digest(uri))


def _content(outputs: Mapping[str, OutputRef]) -> str:
    lines = sorted(f"{name}\0{output.sha256}\n" for name, output in outputs.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _place(folder: str, path: str) -> str:
    """Where an output lies; on S3 a key has no `..`, so they are walked here."""
    while path.startswith("../"):
        folder, path = folder.rpartition("/")[0], path[3:]
    return storage.join(folder, path)


def _versions(folder: str, outputs: Mapping[str, OutputRef]) -> dict[str, tuple[int, str]]:
    """Size and version of the outputs that are there; on S3 from listings, for a question a file would
    take minutes.
    """
    places = {name: _place(folder, output.path) for name, output in outputs.items()}
    found: dict[str, tuple[int, str]] = {}
    if storage.is_remote(folder):
        parents = {
            folder if place.startswith(f"{folder}/") else place.rpartition("/")[0]
            for place in places.values()
        }
        there = {
            storage.join(parent, entry.path): entry for parent in parents for entry in storage.walk(parent)
        }
        return {
            name: (there[place].num_bytes, there[place].version)
            for name, place in places.items()
            if place in there
        }
    for name, place in places.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found[name] = storage.size(place), storage.version(place)
    return found
