"""Artifacts: the outputs of a step under an id that says what they were made from, and the plan of a run.

An artifact is `ROOT/artifacts/<step>/<id>/` with its files and `record.json`, which is written last. The id
is a digest of the step's name, the settings that change its result, the ids of its inputs, and its code.
Where it ran is not part of it. Because inputs are ids, a whole plan is computed without running anything.

The record holds the digest of every output, and of every input as it was when it was read. An output is read
again for its digest only if its time or ETag differs from when it was last verified (`verified.json`, a cache
that can be deleted).
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from diffbfr.errors import UsageError
from pipelines import storage

JSON = Any
RECORD = "record.json"
VERIFIED = "verified.json"
_ID_DIGITS = 20
SHOWN_DIGITS = 12
_STEP = re.compile(r"[a-z0-9][a-z0-9_-]*")
_ID = re.compile(r"[0-9a-f]{20}")


@dataclass(frozen=True)
class Identity:
    """Everything that the content of an artifact depends on.

    `config` maps dotted paths to JSON values (see `flatten`), `inputs` names to artifact ids or digests,
    `code` modules to digests.
    """

    step: str
    config: Mapping[str, JSON]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    def __post_init__(self) -> None:
        if not _STEP.fullmatch(self.step):
            raise UsageError(
                f"a step is called {self.step!r}; expected small letters, digits, - and _: "
                "a folder has this name"
            )
        # Fields are normalised to what a record reads back, so that an old identity and a new one compare.
        for name in ("config", "inputs", "code"):
            object.__setattr__(self, name, json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False)))

    @cached_property
    def id(self) -> str:
        """20 hex digits."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]


@dataclass(frozen=True)
class OutputRef:
    """One output file.

    `path` is relative to the artifact's folder; it begins with `../` if the file lies in another artifact, as
    a column does in its dataset.
    """

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The record of a finished artifact.

    `metadata` holds counts, losses and the like; `seconds` is the time it took; `created` is UTC in ISO
    format. `content` is a digest of what later steps see, without times and places. `sources` holds the
    `content` of each input when it was read.
    """

    identity: Identity
    outputs: Mapping[str, OutputRef]
    metadata: Mapping[str, JSON]
    seconds: float
    created: str
    content: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)


class ArtifactStore:
    """The artifacts under one root, local or on S3."""

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)
        self._step_of: dict[str, str] = {}

    def artifact_dir(self, identity: Identity) -> str:
        """The folder of an artifact, whether it exists yet or not."""
        return storage.join(self.root, "artifacts", identity.step, identity.id)

    def find(self, identity: Identity) -> Record | None:
        """The record of a finished artifact.

        None if it was not finished, an output is missing or differs, or an input has other content by now.
        """
        record = self.finished(identity)
        return record if record is not None and self.problem(record) is None else None

    def finished(self, identity: Identity) -> Record | None:
        """The record of a finished artifact, valid or not."""
        return self._read(identity.step, identity.id)

    def by_id(self, artifact_id: str) -> Record | None:
        """The record with this id, whatever the step; None also for what is no id, such as a path."""
        if not _ID.fullmatch(artifact_id):
            return None
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
        """Every id, digest and reference in the inputs and metadata of a record: `gc` must keep these."""
        referenced: set[str] = set()
        for step in storage.list_dir(storage.join(self.root, "artifacts")):
            for record in self.records(step):
                values = (*record.identity.inputs.values(), *record.metadata.values())
                referenced.update(value for value in values if isinstance(value, str))
        return referenced

    def problem(self, record: Record) -> str | None:
        """Why a finished artifact is not valid, in words for a plan: a stale input or a corrupt output."""
        stale = self.stale_input(record)
        if stale is not None:
            return stale
        return next((f"output {name} {what}" for name, what in self.corruption(record).items()), None)

    def stale_input(self, record: Record) -> str | None:
        """The first input that was rebuilt with other content since it was read; None if there is none."""
        for name, content in sorted(record.sources.items()):
            source = self.by_id(record.identity.inputs[name])
            if source is not None and source.content not in ("", content):
                return (
                    f"input {name} was rebuilt with other content: {content[:SHOWN_DIGITS]} -> "
                    f"{source.content[:SHOWN_DIGITS]}"
                )
        return None

    def corruption(self, record: Record, thorough: bool = False) -> dict[str, str]:
        """What is wrong with the outputs of a finished artifact, by name: `is missing`, for example.

        `thorough` reads every byte; without it only files are read that changed since they were verified.
        """
        folder = self.artifact_dir(record.identity)
        verified = self._read_verified(folder)
        versions = _versions(folder, record.outputs)
        problems: dict[str, str] = {}
        for name, output in sorted(record.outputs.items()):
            num_bytes, version = versions.get(name, (-1, ""))
            if name not in versions:
                problems[name] = "is missing"
            elif num_bytes != output.num_bytes:
                problems[name] = f"has {num_bytes} bytes, recorded {output.num_bytes}"
            elif thorough or verified.get(name) != version:
                digest = storage.digest(_uri(folder, output.path))
                if digest != output.sha256:
                    problems[name] = (
                        f"has the digest {digest[:SHOWN_DIGITS]}, recorded {output.sha256[:SHOWN_DIGITS]}"
                    )
        found = {name: version for name, (_, version) in sorted(versions.items())}
        if not problems and found != verified:
            with contextlib.suppress(OSError):  # `--plan` may read a root that it cannot write
                storage.write_json(storage.join(folder, VERIFIED), found, within=self.root)
        return problems

    def reopen(self, identity: Identity) -> None:
        """Prepare to write an artifact: refuse links on the way and in it, remove what dead writers left."""
        place = self.root
        for part in ("artifacts", identity.step, identity.id):
            place = storage.join(place, part)
            storage.refuse_link(place)
        storage.reopen_folder(place)

    def clear(self, identity: Identity) -> None:
        """Remove what a step must not resume from: corrupt outputs, or all of them if an input is stale."""
        record = self._read(identity.step, identity.id)
        if record is None:
            return
        folder = self.artifact_dir(identity)
        if self.stale_input(record):
            storage.remove_tree(folder)
            return
        for name in self.corruption(record):
            storage.remove_file(_uri(folder, record.outputs[name].path), within=self.root)

    def commit(
        self,
        identity: Identity,
        outputs: Mapping[str, str | OutputRef],
        metadata: Mapping[str, JSON],
        seconds: float,
        content: str | None = None,
    ) -> Record:
        """Write the record of an artifact whose files are in its folder.

        An output given as a path is read for its digest. `content` is a digest of what later steps see;
        without it, it is computed from all outputs.
        """
        folder = self.artifact_dir(identity)
        refs = {
            name: output if isinstance(output, OutputRef) else _output_ref(folder, output)
            for name, output in outputs.items()
        }
        sources: dict[str, str] = {}
        for name, artifact_id in identity.inputs.items():
            source = self.by_id(artifact_id)
            if source is not None and source.content:
                sources[name] = source.content
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        record = Record(identity, refs, dict(metadata), seconds, created, content or _content(refs), sources)
        versions = {name: version for name, (_, version) in _versions(folder, refs).items()}
        described = {"id": identity.id, **dataclasses.asdict(record)}
        storage.write_json(storage.join(folder, VERIFIED), versions, within=self.root)
        storage.write_json(storage.join(folder, RECORD), described, within=self.root)
        return record

    def _read_verified(self, folder: str) -> Mapping[str, str]:
        """Output -> the version in which it was verified last; empty without the cache."""
        try:
            verified = storage.read_json(storage.join(folder, VERIFIED))
        except (FileNotFoundError, ValueError):
            return {}
        return verified if isinstance(verified, dict) else {}

    def _read(self, step: str, name: str) -> Record | None:
        place = storage.join(self.root, "artifacts", step, name, RECORD)
        try:
            values = storage.read_json(place)
            outputs = {key: _checked(OutputRef(**output), place) for key, output in values["outputs"].items()}
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


def flatten(config: Any, prefix: str = "") -> dict[str, JSON]:
    """A dataclass or mapping as dotted path -> JSON value; a tuple is one value, a list."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        flat: dict[str, JSON] = {}
        for name, value in config.items():
            flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    return {prefix: json.loads(json.dumps(config))}


def _checked(output: OutputRef, record: str) -> OutputRef:
    """The output; UsageError unless its path stays among the artifacts, as what it names may be removed.

    `../../STEP/ID/` leads from an artifact's folder to another's.
    """
    inside = re.sub(r"^\.\./\.\./[a-z0-9][a-z0-9_-]*/[0-9a-f]{20}/", "", output.path)
    storage.check_key(inside, record)
    return output


def _output_ref(folder: str, path: str) -> OutputRef:
    uri = _uri(folder, path)
    if not storage.exists(uri):
        raise UsageError(
            f"{uri} is not there; expected the step to have written it; run the same command again"
        )
    return OutputRef(path, storage.size(uri), storage.digest(uri))


def _content(outputs: Mapping[str, OutputRef]) -> str:
    lines = sorted(f"{name}\0{output.sha256}\n" for name, output in outputs.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _uri(folder: str, path: str) -> str:
    """The URI of an output; `..` is resolved here because S3 has no such key."""
    while path.startswith("../"):
        folder, path = folder.rpartition("/")[0], path[3:]
    return storage.join(folder, path)


def _versions(folder: str, outputs: Mapping[str, OutputRef]) -> dict[str, tuple[int, str]]:
    """Size and version of the outputs that exist.

    On S3 they are taken from listings: a request for each file of a dataset would take minutes.
    """
    uris = {name: _uri(folder, output.path) for name, output in outputs.items()}
    versions: dict[str, tuple[int, str]] = {}
    if storage.is_remote(folder):
        parents = {
            folder if uri.startswith(f"{folder}/") else uri.rpartition("/")[0] for uri in uris.values()
        }
        listed: dict[str, tuple[int, str]] = {}
        for parent in parents:
            for entry in storage.walk(parent):
                listed[storage.join(parent, entry.path)] = entry.num_bytes, entry.version
        return {name: listed[uri] for name, uri in uris.items() if uri in listed}
    for name, uri in uris.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            versions[name] = storage.size(uri), storage.version(uri)
    return versions
