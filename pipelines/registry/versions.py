"""Registered models: three stages and the cascade that names them. A version is an immutable copy, known
by the digest of its content.
"""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from uuid import uuid4

from diffbfr.digests import model_digest, model_files
from diffbfr.errors import DiffBFRError, UsageError
from pipelines.registry.lock import turn
from pipelines.registry.packaging import CASCADE_PATH, copy_files, save_served, served_tags
from pipelines.tracking.connection import Registry, ensure_model
from pipelines.tracking.runs import Run

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.entities.model_registry import RegisteredModel

Stage = Literal["irm1", "irm2", "tem"]
STAGES: Final[tuple[Stage, ...]] = ("irm1", "irm2", "tem")
CASCADE: Final = "diffbfr-cascade"
MODELS: Final = (*(f"diffbfr-{stage}" for stage in STAGES), CASCADE)
ALIASES: Final = ("candidate", "champion", "previous")
PACKAGED: Final = "packaged"
CASCADE_RECORD: Final = "cascade.json"
UPLOADS: Final = "diffbfr.uploads"
"""Tag of a run that holds files of versions; `diffbfr.uploads.<attempt>` says where, from before the first
byte came.
"""
_PAGE: Final = 100


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from. `parents` are digests of models by role: `irm1` made an irm2's
    conditioning, `init` was the start.
    """

    content_id: str
    recipe: str
    artifact_id: str
    code_digest: str
    parents: Mapping[str, str]
    root: str = ""
    """The root whose records name the version: garbage is collected from there."""

    def tags(self) -> dict[str, str]:
        """The lineage as tags of a version."""
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
    """One registered version; `digest` covers specifications and weights, as in `model_digest`."""

    name: str
    version: int
    digest: str
    aliases: tuple[str, ...]
    created: str
    source: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in it: one, or the cascade's three."""
        return (
            STAGES
            if self.name == CASCADE
            else tuple(stage for stage in STAGES if self.name == f"diffbfr-{stage}")
        )

    @property
    def ref(self) -> str:
        """How people name it: `diffbfr-irm1@3`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Resolved:
    """A cascade on this machine: read it, never write there."""

    ref: str
    folder: Path
    digest: str


def register_stage(run: Run, stage: Stage, folder: Path, lineage: Lineage) -> ModelVersion:
    """Register a trained stage; the same content registered again is the version that is there. It becomes
    the candidate.
    """
    digest = model_digest(folder, (stage,))
    with tempfile.TemporaryDirectory() as temporary:
        upload = copy_files(model_files(folder, (stage,)), Path(temporary) / stage)
        return _register(run, f"diffbfr-{stage}", digest, upload, {**lineage.tags(), "stage": stage})


def register_cascade(
    run: Run, folder: Path, stages: Mapping[Stage, ModelVersion], lineage: Lineage
) -> ModelVersion:
    """Register a cascade made of exactly these three stage versions, as an MLflow model that serves; it
    becomes the candidate.
    """
    digest = model_digest(folder, STAGES)
    _check_triple(folder, stages)
    tags = lineage.tags()
    for stage in STAGES:
        tags |= {f"stage.{stage}": stages[stage].ref, f"stage.{stage}.digest": stages[stage].digest}
    with tempfile.TemporaryDirectory() as temporary:
        # the last name of a folder is what MLflow keeps of it
        files = copy_files(
            [folder / CASCADE_RECORD, *model_files(folder, STAGES)], Path(temporary) / "cascade"
        )
        model = save_served(files, Path(temporary) / "model", digest)
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
            found += [_message(version, aliases) for version in page]
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
    """The version that `name@alias` or `name@version` means."""
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
    have = ", ".join(
        [
            *(str(version.version) for version in versions),
            *sorted({a for version in versions for a in version.aliases}),
        ]
    )
    raise UsageError(
        f"{name} has no {which!r}; it has {have or 'no versions at all'}; run the pipeline or choose one of "
        "these"
    )


def version_with_alias(registry: Registry, name: str, alias: str) -> ModelVersion | None:
    """The version that has an alias; None if none has."""
    from mlflow.exceptions import MlflowException

    aliases = aliases_of(registry, name)
    if alias not in aliases:
        return None
    try:
        return _message(registry.client.get_model_version(name, aliases[alias]), aliases)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def aliases_of(registry: Registry, name: str) -> Mapping[str, str]:
    """Alias -> number of a version; MLflow's search of versions leaves them out."""
    model = _model(registry, name)
    return {str(alias): str(version) for alias, version in model.aliases.items()} if model is not None else {}


def model_tags(registry: Registry, name: str) -> Mapping[str, str]:
    """Tags of a registered model; none before it is there."""
    model = _model(registry, name)
    return dict(model.tags) if model is not None else {}


def resolve(ref: str, registry: Registry, cache: Path) -> Resolved:
    """Bring a cascade to this machine: `packaged`, a folder, `name@alias` or `name@version`; its digest is
    checked every time.
    """
    if ref == PACKAGED:
        from diffbfr.cascade import packaged_cascade

        return Resolved(ref, packaged_cascade(), model_digest(packaged_cascade(), STAGES))
    if Path(ref).is_dir():
        return Resolved(ref, Path(ref), model_digest(Path(ref), STAGES))
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
    """Folder with the version's safetensors and JSON files, checked against its digest; a copy under
    `cache` if the files are remote.
    """
    from mlflow.artifacts import download_artifacts

    source = f"{version.source}/{CASCADE_PATH}" if version.name == CASCADE else version.source
    place = None if source.startswith(("file:", "/")) else cache / version.digest
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        copy = place / source.rsplit("/", 1)[-1]
        with contextlib.suppress(UsageError):  # not there yet, or only in part
            if model_digest(copy, version.stages) == version.digest:
                return copy
    try:
        folder = Path(
            download_artifacts(source, dst_path=str(place) if place else None, tracking_uri=registry.uri)
        )
        digest = model_digest(folder, version.stages)
    except (
        Exception
    ) as error:  # every artifact store has errors of its own, and each means the same to the user
        raise DiffBFRError(
            f"{version.ref}: cannot read {source} ({' '.join(str(error).split())}); run `diffbfr models fsck`"
        ) from error
    if digest != version.digest:
        raise DiffBFRError(
            f"{version.ref}: {source} has digest {digest[:12]}, registered was {version.digest[:12]}; choose "
            "another version"
        )
    return folder


def _register(run: Run, name: str, digest: str, upload: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Upload, read back, then create the version and move the alias: a version never points at something
    incomplete.

    Of several who register the same content at once, one makes the version; the files of the others are left
    to `collect_garbage`. A version that is collected meanwhile is made again.
    """
    registry, source = run.registry, ""
    ensure_model(registry, name)
    while True:
        if not source and _known(registry, name, digest) is None:
            source = _upload(run, name, digest, upload, tags)
        with turn(registry, name):
            version = _known(registry, name, digest)
            if version is None and source:
                made = registry.client.create_model_version(
                    name, source, run.run_id, tags={**tags, "digest": digest}
                )
                version = _message(made, {})
            if version is not None:
                if "champion" not in version.aliases:
                    registry.client.set_registered_model_alias(name, "candidate", str(version.version))
                return get_version(registry, version.ref)


def _check_triple(folder: Path, stages: Mapping[Stage, ModelVersion]) -> None:
    """Refuse a cascade whose stages are not the versions named, or whose IRM-2 learnt from another IRM-1."""
    for stage in STAGES:
        if stage not in stages or model_digest(folder, (stage,)) != stages[stage].digest:
            named = stages[stage].ref if stage in stages else "missing"
            raise UsageError(
                f"the {stage} in {folder} is not {named}; expected exactly the registered stages; build the "
                "cascade again"
            )
    from diffbfr.cascade import check_triple
    from diffbfr.checkpoint import read_stage_spec

    check_triple(*(read_stage_spec(folder, stage) for stage in STAGES))
    parent = stages["irm2"].tags.get("parent.irm1")
    if parent is not None and parent != stages["irm1"].digest:
        raise UsageError(
            f"{stages['irm2'].ref} learnt from irm1 {parent[:12]}, the cascade holds {stages['irm1'].ref} "
            f"({stages['irm1'].digest[:12]}); "
            "expected the same irm1; rerun condition and train irm2"
        )


def _known(registry: Registry, name: str, digest: str) -> ModelVersion | None:
    return next(
        (version for version in reversed(list_versions(registry, name)) if version.digest == digest), None
    )


def _upload(run: Run, name: str, digest: str, upload: Path, tags: Mapping[str, str]) -> str:
    """Copy the files to a new place in the run and read them back; returns where. What a crash leaves is
    found by the run's tag.
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
    client = registry.client  # before the next line, for it imports MLflow faster
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _message(version: "MlflowVersion", aliases: Mapping[str, str]) -> ModelVersion:
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
