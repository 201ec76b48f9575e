"""Registered models: the three stages, and the cascade that names one version of each.

A version is an immutable copy of the files, identified by the digest of their content. The same content
registered again is the existing version.
"""

import contextlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from diffbfr.digests import model_digest, model_files
from diffbfr.documents import abridged, decode_json
from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.origin import licences, read_origin, read_origins
from diffbfr.packaged import packaged_folder, packaged_names
from diffbfr.stages import PACKAGED, STAGE_NAMES, StageName
from pipelines.registry.lock import model_lock
from pipelines.registry.packaging import CASCADE_PATH, copy_files, save_served, served_tags
from pipelines.storage import local_path
from pipelines.tracking.connection import Registry, ensure_model
from pipelines.tracking.runs import Run, masked

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.entities.model_registry import RegisteredModel

CASCADE: Final = "diffbfr-cascade"
MODELS: Final = (*(f"diffbfr-{stage}" for stage in STAGE_NAMES), CASCADE)
ALIASES: Final = ("candidate", "champion", "previous")
CASCADE_RECORD: Final = "cascade.json"
UPLOADS: Final = "diffbfr.uploads"
"""Tag of a run with files of versions. `diffbfr.uploads.ATTEMPT` holds their path, set before the upload."""
_PAGE: Final = 100
_DOWNLOADS: Final = 2
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    `parents` is role -> digest or artifact id: `dataset`, `init` (the weights at the start) or `teacher` (of
    a distilled stage), and for IRM-2 `irm1` and `column` (what made its conditioning).
    """

    content_id: str
    recipe: str
    artifact_id: str
    code_digest: str
    parents: Mapping[str, str]
    root: str = ""
    """The root whose records reference the version, and from which garbage is collected."""

    def tags(self) -> dict[str, str]:
        own = {
            "data.content_id": self.content_id,
            "recipe": self.recipe,
            "artifact": self.artifact_id,
            "code": self.code_digest,
        }
        if self.root:
            own["root"] = self.root
        return own | {f"parent.{role}": digest for role, digest in self.parents.items()}


@dataclass(frozen=True)
class ModelVersion:
    """One registered version; `digest` is the `model_digest` of its specifications and weights."""

    name: str
    version: int
    digest: str
    aliases: tuple[str, ...]
    created: str
    source: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages in it: one, or all three of a cascade."""
        if self.name == CASCADE:
            return STAGE_NAMES
        return tuple(stage for stage in STAGE_NAMES if self.name == f"diffbfr-{stage}")

    @property
    def ref(self) -> str:
        """`name@version`, for example `diffbfr-irm1@3`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Resolved:
    """A cascade on this machine, in a folder that is only read."""

    ref: str
    folder: Path
    digest: str


def register_stage(run: Run, stage: StageName, folder: Path, lineage: Lineage) -> ModelVersion:
    """Register a trained stage, or find the version with the same content. It becomes the candidate."""
    digest = model_digest(folder, (stage,))
    with tempfile.TemporaryDirectory() as temporary:
        upload = copy_files(model_files(folder, (stage,)), Path(temporary) / stage)
        tags = {**lineage.tags(), "stage": stage, **_origin_tags(folder, stage)}
        return _register(run, f"diffbfr-{stage}", digest, upload, tags)


def register_cascade(
    run: Run, folder: Path, stages: Mapping[StageName, ModelVersion], lineage: Lineage
) -> ModelVersion:
    """Register a cascade of these three stage versions as a servable MLflow model. It becomes the candidate.

    UsageError if a stage in the folder is not the version named, or IRM-2 learnt from another IRM-1.
    """
    digest = model_digest(folder, STAGE_NAMES)
    _check_triple(folder, stages)
    tags = lineage.tags()
    for stage in STAGE_NAMES:
        tags |= {f"stage.{stage}": stages[stage].ref, f"stage.{stage}.digest": stages[stage].digest}
    origins = read_origins(folder, STAGE_NAMES)
    tags |= {f"licence.{stage}": licences([origin])[0] for stage, origin in origins.items()}
    with tempfile.TemporaryDirectory() as temporary:
        # MLflow keeps the last part of the folder's path as the artifact's name.
        files = copy_files(
            [folder / CASCADE_RECORD, *model_files(folder, STAGE_NAMES)], Path(temporary) / "cascade"
        )
        model = save_served(files, Path(temporary) / "model", digest, licences(origins.values()))
        return _register(run, CASCADE, digest, model, tags | served_tags(model))


def list_versions(registry: Registry, name: str | None = None) -> tuple[ModelVersion, ...]:
    """Every version of one registered model, or of all four, oldest first."""
    found: list[ModelVersion] = []
    for model in (name,) if name else MODELS:
        aliases = aliases_of(registry, model)
        token = None
        while True:
            page = registry.client.search_model_versions(
                f"name = '{model}'", max_results=_PAGE, page_token=token
            )
            found += [_to_version(version, aliases) for version in page]
            token = page.token
            if not token:
                break
    return tuple(
        sorted(
            found,
            key=lambda version: (
                MODELS.index(version.name) if version.name in MODELS else -1,
                version.version,
            ),
        )
    )


def get_version(registry: Registry, ref: str) -> ModelVersion:
    """The version of `name@alias` or `name@version`; UsageError if there is none."""
    name, _, which = ref.partition("@")
    versions = list_versions(registry, name) if name in MODELS and which else ()
    for version in versions:
        if which == str(version.version) or which in version.aliases:
            return version
    if name not in MODELS or not which:
        raise UsageError(
            f"{ref!r} names no model; expected NAME@ALIAS or NAME@VERSION with NAME one of "
            f"{', '.join(MODELS)}"
        )
    aliases = sorted(chain.from_iterable(version.aliases for version in versions))
    have = ", ".join([*(str(version.version) for version in versions), *aliases])
    raise UsageError(
        f"{name} has no {which!r}; it has {have or 'no versions at all'}; run the pipeline or choose one of "
        "these"
    )


def version_with_alias(registry: Registry, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias points to; None if there is none."""
    from mlflow.exceptions import MlflowException

    aliases = aliases_of(registry, name)
    if alias not in aliases:
        return None
    try:
        return _to_version(registry.client.get_model_version(name, aliases[alias]), aliases)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def aliases_of(registry: Registry, name: str) -> Mapping[str, str]:
    """Alias -> number of a version; empty if the model does not exist."""
    model = _model(registry, name)
    return {str(alias): str(version) for alias, version in model.aliases.items()} if model is not None else {}


def model_tags(registry: Registry, name: str) -> Mapping[str, str]:
    """Tags of a registered model; empty if it does not exist."""
    model = _model(registry, name)
    return dict(model.tags) if model is not None else {}


def parse_tag(what: str, tag: str) -> dict[str, Any]:
    """Parse a tag that holds a JSON object; UsageError if it does not, as anyone may have written it."""
    try:
        value = decode_json(tag)
        if not isinstance(value, dict):
            raise ValueError(f"it is {abridged(value)}")
    except ValueError as error:
        raise UsageError(
            f"{what} in the registry is damaged ({one_line(error)}); expected a JSON object as diffbfr wrote "
            "it; run `diffbfr models fsck`"
        ) from error
    return value


def has_model(registry: Registry, name: str) -> bool:
    """Whether a registered model exists, also without versions."""
    return _model(registry, name) is not None


def resolve(ref: str, registry: Registry, cache: Path) -> Resolved:
    """Bring a cascade to this machine: `packaged`, a folder, `name@alias` or `name@version`.

    The digest of a registered one is checked every time. UsageError if `ref` names no cascade.
    """
    if ref in packaged_names():
        return Resolved(ref, packaged_folder(ref), model_digest(packaged_folder(ref), STAGE_NAMES))
    if Path(ref).is_dir():
        return Resolved(ref, Path(ref), model_digest(Path(ref), STAGE_NAMES))
    if ref.partition("@")[0] not in MODELS:
        raise UsageError(
            f"no cascade {ref!r}; expected `{PACKAGED}`, a folder, or {CASCADE}@champion; see `diffbfr "
            "models list`"
        )
    version = get_version(registry, ref)
    if version.name != CASCADE:
        raise UsageError(f"{ref} is one stage; expected a cascade; say {CASCADE}@ALIAS")
    return Resolved(version.ref, fetch(registry, version, cache), version.digest)


def fetch(registry: Registry, version: ModelVersion, cache: Path) -> Path:
    """Folder with the version's safetensors and JSON files: a copy under `cache` if they are remote.

    DiffBFRError if they cannot be read or do not have the registered digest, which is checked every time.
    """
    if not _DIGEST.fullmatch(version.digest):
        raise DiffBFRError(
            f"{version.ref} has the digest tag {version.digest!r}; expected 64 hex digits; choose another "
            "version, or register it again"
        )
    source = f"{version.source}/{CASCADE_PATH}" if version.name == CASCADE else version.source
    if source.startswith(("file:", "/")):
        folder = local_path(source)
        digest = _digest_of(folder, version, source)
    else:
        folder = cache / version.digest / "files"
        # UsageError: nothing, or only a part, was downloaded yet.
        with contextlib.suppress(UsageError):
            if model_digest(folder, version.stages) == version.digest:
                return folder
        for _ in range(_DOWNLOADS):  # the bytes may be altered on their way
            _download(registry, version, source, folder)
            digest = _digest_of(folder, version, source)
            if digest == version.digest:
                break
    if digest != version.digest:
        raise DiffBFRError(
            f"{version.ref}: {source} has digest {digest[:12]}, registered was {version.digest[:12]}; choose "
            "another version"
        )
    return folder


def _download(registry: Registry, version: ModelVersion, source: str, folder: Path) -> None:
    """Download the files of a model one by one, so that no other name in the source matters."""
    from mlflow.artifacts import download_artifacts

    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{stage}.json" for stage in version.stages]
    names += [f"{stage}.safetensors" for stage in version.stages]
    if version.name == CASCADE:
        names.append(CASCADE_RECORD)
    try:
        for name in names:
            download_artifacts(f"{source}/{name}", dst_path=str(folder), tracking_uri=registry.uri)
    except Exception as error:
        # Every artifact store raises errors of its own, and each means the same to the user.
        raise _unreadable(version, source, error) from error


def _digest_of(folder: Path, version: ModelVersion, source: str) -> str:
    try:
        return model_digest(folder, version.stages)
    except (OSError, UsageError) as error:
        raise _unreadable(version, source, error) from error


def _unreadable(version: ModelVersion, source: str, error: Exception) -> DiffBFRError:
    return DiffBFRError(f"{version.ref}: cannot read {source} ({one_line(error)}); run `diffbfr models fsck`")


def _register(run: Run, name: str, digest: str, upload: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Upload, read back, create the version, move the alias: no version ever points at incomplete files.

    Of several processes that register the same content at once, one creates the version; the uploads of the
    others are left to `collect_garbage`. If the version is collected meanwhile, the loop starts again.
    """
    registry, source = run.registry, ""
    ensure_model(registry, name)
    while True:
        if not source and _find_by_digest(registry, name, digest) is None:
            source = _upload(run, name, digest, upload, tags)
        with model_lock(registry, name):
            version = _find_by_digest(registry, name, digest)
            if version is None and source:
                made = registry.client.create_model_version(
                    name, source, run.run_id, tags={**masked(tags), "digest": digest}
                )
                version = _to_version(made, {})
            if version is not None:
                if "champion" not in version.aliases:
                    registry.client.set_registered_model_alias(name, "candidate", str(version.version))
                return get_version(registry, version.ref)


def _origin_tags(folder: Path, stage: StageName) -> dict[str, str]:
    """Tags of a stage that others trained, or that went on from one: what it is, and its terms."""
    origin = read_origin(folder / f"{stage}.safetensors")
    if origin is None:
        return {}
    names = {"source": "origin.source", "file": "origin.file", "sha256": "origin.sha256"}
    names |= {"licence": "licence", "terms": "licence.terms"}
    return {tag: getattr(origin, name) for name, tag in names.items()}


def _check_triple(folder: Path, stages: Mapping[StageName, ModelVersion]) -> None:
    """Refuse a cascade whose stages are not the versions named, or whose IRM-2 learnt from another IRM-1."""
    for stage in STAGE_NAMES:
        if stage not in stages or model_digest(folder, (stage,)) != stages[stage].digest:
            named = stages[stage].ref if stage in stages else "missing"
            raise UsageError(
                f"the {stage} in {folder} is not {named}; expected exactly the registered stages; build the "
                "cascade again"
            )
    from diffbfr.cascade import check_triple
    from diffbfr.checkpoint import read_stage_spec

    check_triple(*(read_stage_spec(folder, stage) for stage in STAGE_NAMES))
    check_parent(stages["irm2"], stages["irm1"].ref, stages["irm1"].digest)


def check_parent(irm2: ModelVersion, irm1_ref: str, irm1_digest: str) -> None:
    """UsageError if a version of IRM-2 learnt from another IRM-1 than this one."""
    parent = irm2.tags.get("parent.irm1")
    if parent is not None and parent != irm1_digest:
        raise UsageError(
            f"{irm2.ref} learnt from irm1 {parent[:12]}, the cascade holds {irm1_ref} ({irm1_digest[:12]}); "
            "expected the same irm1; rerun condition and train irm2"
        )


def _find_by_digest(registry: Registry, name: str, digest: str) -> ModelVersion | None:
    return next(
        (version for version in reversed(list_versions(registry, name)) if version.digest == digest), None
    )


def _upload(run: Run, name: str, digest: str, upload: Path, tags: Mapping[str, str]) -> str:
    """Upload the files to a new path in the run, read them back, and return their URI.

    The run's tag is set first, so `collect_garbage` finds what a crash leaves.
    """
    attempt = f"{digest[:12]}-{uuid4().hex[:8]}"
    path = f"models/{attempt}"
    run.log_tags({UPLOADS: "yes", f"{UPLOADS}.{attempt}": path})
    run.registry.client.log_artifacts(run.run_id, str(upload), path)
    draft = ModelVersion(name, 0, digest, (), "", f"{run.artifact_uri}/{path}", run.run_id, tags)
    with tempfile.TemporaryDirectory() as temporary:
        fetch(run.registry, draft, Path(temporary))
    return draft.source


def _model(registry: Registry, name: str) -> "RegisteredModel | None":
    # The client comes first: it imports MLflow faster than the next line would.
    client = registry.client
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _to_version(version: "MlflowVersion", aliases: Mapping[str, str]) -> ModelVersion:
    tags = {str(name): str(value) for name, value in version.tags.items()}
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        digest=tags.get("digest", ""),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == str(version.version))),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        source=str(version.source),
        run_id=str(version.run_id or ""),
        tags=tags,
    )
