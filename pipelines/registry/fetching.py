"""Files of registered models on this machine: fetched, and checked every time against the digest."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.digests import model_digest
from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.packaged import packaged_folder, packaged_names
from diffbfr.stages import STAGE_NAMES
from pipelines.registry.packaging import CASCADE_PATH
from pipelines.registry.versions import CASCADE, CASCADE_RECORD, MODELS, ModelVersion, get_version
from pipelines.storage import local_path
from pipelines.tracking.connection import Registry

_DOWNLOADS: Final = 2
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Resolved:
    """A cascade on this machine, in a folder that is only read."""

    ref: str
    folder: Path
    digest: str


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
            f"no cascade {ref!r}; expected {' or '.join(packaged_names())}, a folder, or {CASCADE}@champion; "
            "see `diffbfr models list`"
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
