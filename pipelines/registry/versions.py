"""Registered models: the three stages, and the cascade that names one version of each.

A version is an immutable copy of the files, identified by the digest of their content. The same content
registered again is the existing version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from diffbfr.documents import abridged, decode_json
from diffbfr.errors import UsageError, one_line
from diffbfr.stages import STAGE_NAMES, StageName
from pipelines.tracking.connection import Registry

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
            found += [to_version(version, aliases) for version in page]
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
        return to_version(registry.client.get_model_version(name, aliases[alias]), aliases)
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


def to_version(version: "MlflowVersion", aliases: Mapping[str, str]) -> ModelVersion:
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
