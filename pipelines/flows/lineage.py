"""The chain from a registered version back to the photos, each link compared with its record.

A version's tags name the artifact it was made from, an artifact's record names its inputs, and the record of
the first names the photos. Every file in the registry and under the root is read for its digest. The photos
are listed again, and read only on request: a listing does not show a photo that changed but kept its size and
modification time.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.digests import model_digest
from diffbfr.errors import DiffBFRError
from diffbfr.packaged import packaged_folder, packaged_names
from diffbfr.stages import STAGE_NAMES
from diffbfr.text import shown
from pipelines import storage
from pipelines.execution.artifact_store import ArtifactStore, Record
from pipelines.registry import CASCADE, ModelVersion, fetch, get_version, list_versions
from pipelines.sources import PhotoUnreadableError, open_source
from pipelines.tracking.connection import Registry

_SHOWN: Final = 12
_ALONE: Final = tuple((stage,) for stage in STAGE_NAMES)
_COUNTED: Final = ("num_samples", "samples", "images", "faces")


@dataclass(frozen=True)
class Link:
    """One version, artifact or input; `problems` is how it differs from its record, `sources` its inputs."""

    title: str
    digest: str
    detail: str
    problems: tuple[str, ...] = ()
    sources: tuple["Link", ...] = ()

    def all(self) -> Iterator["Link"]:
        """This link and all links behind it, each once."""
        yield from {link.title: link for link in self._walk()}.values()

    def _walk(self) -> Iterator["Link"]:
        yield self
        for source in self.sources:
            yield from source._walk()


def trace(registry: Registry, store: ArtifactStore, ref: str, deep: bool = False) -> Link:
    """Follow a version back to the photos, reading every file on the way; the photos only with `deep`."""
    return _Tracer(registry, store, deep).version(get_version(registry, ref))


def format_chain(link: Link) -> str:
    """The chain as indented text, one line a link. A link shown before is only named; `!` marks a problem."""
    named: set[str] = set()

    def lines(it: Link, depth: int) -> Iterator[str]:
        lead = f"{'  ' * depth}{'└ ' if depth else ''}"
        again = it.title in named
        yield f"{lead}{it.title}  {it.digest[:_SHOWN]}  {'(see above)' if again else it.detail}".rstrip()
        if again:
            return
        named.add(it.title)
        yield from (f"{'  ' * (depth + 1)}! {problem}" for problem in it.problems)
        for source in it.sources:
            yield from lines(source, depth + 1)

    return "\n".join(map(shown, lines(link, 0)))


class _Tracer:
    """Builds the links of versions and artifacts; an artifact that several need is checked once."""

    def __init__(self, registry: Registry, store: ArtifactStore, deep: bool) -> None:
        self._registry = registry
        self._store = store
        self._deep = deep
        self._versions = {version.ref: version for version in list_versions(registry)}
        self._artifacts: dict[str, Link] = {}
        self._weights: dict[str, Mapping[str, str]] = {}

    def version(self, version: ModelVersion) -> Link:
        """A registered version: its files, its stages, and the artifact that it is a copy of."""
        tags, problems = version.tags, list(self._file_problems(version))
        sources: list[Link] = []
        if version.name == CASCADE:
            for stage in STAGE_NAMES:
                sources += self._stage(version, stage, problems)
        artifact = tags.get("artifact", "")
        record = self._store.by_id(artifact)
        if record is not None:
            problems += self._differences(version, record)
            sources.append(self.artifact(record))
        elif tags.get("root") in (None, self._store.root):
            sources.append(Link(f"artifact {artifact}", "", "", ("its record is gone",)))
        else:
            sources.append(Link(f"artifact {artifact}", "", f"under {tags['root']}"))
        aliases = f"[{', '.join(version.aliases)}] " if version.aliases else ""
        return Link(
            version.ref,
            version.digest,
            f"{aliases}{tags.get('recipe', '?')}, {version.created}",
            tuple(problems),
            tuple(sources),
        )

    def artifact(self, record: Record) -> Link:
        """An artifact under the root, and everything behind it."""
        identity = record.identity
        if identity.id not in self._artifacts:
            problems = [
                f"output {name} {words}"
                for name, words in self._store.corruption(record, thorough=True).items()
            ]
            if stale := self._store.stale_input(record):
                problems.append(stale)
            sources = tuple(self._source(record, name, made) for name, made in identity.inputs.items())
            counts = [
                f"{record.metadata[name]:,} {name.removeprefix('num_')}"
                for name in _COUNTED
                if name in record.metadata
            ]
            detail = ", ".join([*counts, f"{len(record.outputs)} files", record.created[:19]])
            title = f"{identity.step} {identity.id}"
            self._artifacts[identity.id] = Link(title, record.content, detail, tuple(problems), sources)
        return self._artifacts[identity.id]

    def _source(self, record: Record, name: str, made: str) -> Link:
        """One input of an artifact: another artifact, the photos, or the weights a training began with."""
        source = self._store.by_id(made)
        if source is not None:
            return self.artifact(source)
        if name == "photos":
            uri = str(record.metadata["source"])
            problems = _listing_problems(uri, made)
            if not self._deep:
                return Link(
                    f"photos {uri}", made, "names, sizes and times alone, --deep reads them", problems
                )
            return Link(
                f"photos {uri}",
                made,
                "every one read",
                (*problems, *_photo_problems(uri, self._store.artifact_dir(record.identity))),
            )
        if name in ("init", "teacher", *STAGE_NAMES):
            return self._weights_of(name, made)
        if name == "file":
            detail = f"{record.metadata['source']}, {record.metadata['licence']}"
            return Link(f"file {record.metadata['file']}", made, detail)
        return Link(f"{name} {made}", "", "", ("its record is gone",))

    def _weights_of(self, name: str, digest: str) -> Link:
        """Weights that a training began with, or a stage that a cascade was assembled of."""
        known = {version.digest: version.ref for version in self._versions.values()}
        for shipped in packaged_names():
            folder = packaged_folder(shipped)
            if digest in (model_digest(folder, stages) for stages in (STAGE_NAMES, *_ALONE)):
                return Link(name, digest, f"{shipped}, the cascade in the package")
        return Link(name, digest, known.get(digest, "weights that are not in this registry"))

    def _stage(self, version: ModelVersion, stage: str, problems: list[str]) -> Iterator[Link]:
        """The version of one stage of a cascade; `problems` gets a line if it is gone or another one."""
        ref, digest = version.tags.get(f"stage.{stage}", "?"), version.tags.get(f"stage.{stage}.digest", "")
        if ref in self._versions and self._versions[ref].digest == digest:
            yield self.version(self._versions[ref])
        else:
            problems.append(f"its {stage} {ref} is gone or another one")

    def _file_problems(self, version: ModelVersion) -> Iterator[str]:
        """Read the version's files and compare their digest; keeps the digests of its weights."""
        with tempfile.TemporaryDirectory() as cache:
            try:
                folder = fetch(self._registry, version, Path(cache))
            except DiffBFRError as error:
                yield str(error)
                return
            self._weights[version.ref] = {
                path.name: storage.digest(path) for path in folder.glob("*.safetensors")
            }

    def _differences(self, version: ModelVersion, record: Record) -> list[str]:
        """How a version differs from the record of the artifact that it is a copy of."""
        made = {Path(output.path).name: output.sha256 for output in record.outputs.values()}
        weights = self._weights.get(version.ref, {})
        found = [
            f"its {name} is not that of {record.identity.step} {record.identity.id}"
            for name in weights
            if made.get(name) != weights[name]
        ]
        if version.tags.get("data.content_id") != record.metadata.get("content_id"):
            found.append(
                f"it names the data {version.tags.get('data.content_id', '?')[:_SHOWN]}, "
                f"{record.identity.step} another"
            )
        return found


def _listing_problems(uri: str, recorded: str) -> tuple[str, ...]:
    """Compare the photos' names, sizes and modification times with the recorded listing."""
    try:
        now = open_source(uri).digest()
    except (DiffBFRError, OSError) as error:
        return (f"they cannot be listed ({error})",)
    return (
        ()
        if now == recorded
        else (f"their listing has the digest {now[:_SHOWN]}, recorded {recorded[:_SHOWN]}",)
    )


def _photo_problems(uri: str, dataset: str) -> Iterator[str]:
    """Read every photo and compare its digest with that of the photo that the dataset was made from."""
    from pipelines.dataset.manifest import open_dataset, read_quarantine

    refused = read_quarantine(dataset)
    wanted = {sample.source: sample.source_sha256 for sample in open_dataset(dataset).samples}
    wanted |= {row.source: row.source_sha256 for row in refused if row.source_sha256}
    never_read = {row.source for row in refused} - wanted.keys()
    others = []
    try:
        source = open_source(uri)
        for ref in (ref for ref in source.refs() if ref.name not in never_read):
            with contextlib.suppress(PhotoUnreadableError):
                if hashlib.sha256(source.read(ref)).hexdigest() == wanted.get(ref.name):
                    del wanted[ref.name]
                    continue
            others.append(ref.name)
    except (DiffBFRError, OSError):
        # They cannot be listed, which `_listing_problems` reports.
        return
    changed = sorted({*others, *wanted})
    if changed:
        yield f"{len(changed)} photos are not those that the dataset was made from (first: {changed[0]})"
