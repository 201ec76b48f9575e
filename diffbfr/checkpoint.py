"""Checkpoints and weights: safetensors and JSON, with a manifest of digests that is written last.

A training checkpoint is a folder `step-NNNNNNNN/` with tensors, `state.json` and `MANIFEST.json`. It is
written under a temporary name and renamed when complete. A reader skips a folder without a manifest, or with
a file that differs from it, and takes the previous one. The manifest covers every tensor and counter of a
training: two trainings whose last manifests are equal ended with the same bits. Weights of a finished stage
are `STAGE.safetensors` with the stage's specification in `STAGE.json`.
"""

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffbfr.documents import MAX_BYTES, decode_json
from diffbfr.errors import DivergedError, IncompleteError, UsageError, one_line
from diffbfr.models.denoiser import Denoiser
from diffbfr.origin import ORIGIN, Origin
from diffbfr.spec import first_difference, from_dict, to_dict
from diffbfr.stages import StageSpec
from diffbfr.weights import check_header, first_not_finite, read_weights

MANIFEST: Final = "MANIFEST.json"
FORMAT: Final = 1
"""Format of `state.json`.

Format 0 had no number, and its contract held all settings of a training, also those that change no result.
"""
_STATE: Final = "state.json"
_SPEC: Final = "spec"


@dataclass(frozen=True)
class TrainingState:
    """The state of a training: tensors by group ("model", "ema", "optimizer"), and plain values."""

    step: int
    samples: int
    contract: Mapping[str, Any]
    """The stage's specification and the training's settings; a training with another contract is refused."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    skipped: tuple[int, ...] = ()
    """Steps that were skipped so far because their loss was not finite."""
    loss: float | None = None
    """A mean over the steps since the previous checkpoint; None if all of them were skipped."""


def save_checkpoint(folder: Path, state: TrainingState, keep: int, keep_best: bool = False) -> Path:
    """Write a checkpoint; remove all but the newest `keep` and, with `keep_best`, the one of the lowest loss.

    A complete checkpoint of the same step is not replaced. Checkpoints of later steps are kept and do not
    count: a training that has come to this step could read none of them.
    """
    target = folder / f"step-{state.step:08d}"
    if target.exists() and _is_complete(target):
        return target
    shutil.rmtree(target, ignore_errors=True)
    for group, tensors in state.tensors.items():
        if not_finite := first_not_finite(tensors):
            raise DivergedError(
                f"{group} holds NaN or infinity in {not_finite} at step {state.step}; the checkpoint was not "
                "sealed"
            )
    draft = folder / f".draft-{uuid.uuid4().hex}"
    draft.mkdir(parents=True)
    try:
        _write_checkpoint(draft, state)
        draft.rename(target)
    except BaseException:  # such as a full disk, of which the draft takes a part
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _sync(folder)
    steps = [path for path in sorted(folder.glob("step-*")) if path <= target]
    best = min(steps, key=_loss) if keep_best else None
    for old in steps[:-keep]:
        if old != best:
            shutil.rmtree(old)
    for abandoned in folder.glob(".draft-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    return target


def _write_checkpoint(draft: Path, state: TrainingState) -> None:
    """Write the files of a checkpoint, its manifest last, and flush them to disk."""
    for group, tensors in state.tensors.items():
        _write_tensors(
            draft / f"{group}.safetensors",
            {name: t.detach().contiguous().cpu() for name, t in tensors.items()},
        )
    values = {name: getattr(state, name) for name in ("step", "samples", "loss", "contract", "skipped")}
    values["format"] = FORMAT
    (draft / _STATE).write_text(json.dumps(values, indent=1))
    digests = {path.name: file_sha256(path) for path in sorted(draft.iterdir())}
    (draft / MANIFEST).write_text(json.dumps(digests, indent=1))
    for path in draft.iterdir():
        _sync(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file of tensors; IncompleteError if safetensors cannot, which mostly means a full disk."""
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise IncompleteError(
            f"cannot write {path} ({error}); expected room on the disk; make some and run the same command "
            "again"
        ) from error


def load_checkpoint(
    folder: Path,
    contract: Mapping[str, Any],
    completed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda found: found,
) -> TrainingState | None:
    """Read the newest complete checkpoint; None if there is none, UsageError if it has another contract.

    `completed` converts the contract of an older version to the fields of this one. Contracts are compared
    before tensors are read.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        digests = _manifest(path)
        if not _matches(path, digests, _STATE):
            continue
        values = json.loads((path / _STATE).read_text())
        if (written := values.get("format", 0)) > FORMAT:
            raise UsageError(
                f"{path} has format {written}; expected at most {FORMAT}; go on with the version that made it"
            )
        if difference := _differs(contract, completed(values["contract"])):
            raise UsageError(
                f"{path} was made by another training ({difference}); expected this one's; use another --root"
            )
        if not _matches(path, digests, *digests):
            continue
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        skipped = tuple(values.get("skipped", ()))
        return TrainingState(
            values["step"], values["samples"], values["contract"], tensors, skipped, values.get("loss")
        )
    return None


def save_stage(
    folder: Path,
    spec: StageSpec,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    origin: Origin | None = None,
) -> Path:
    """Write the weights `NAME.safetensors` and then the specification `NAME.json`; return the weights' path.

    The weights record what they were trained as, and the `origin` of those that began as others' weights.
    DivergedError if they hold NaN or infinity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.name}.safetensors"
    tensors = {name: t.detach().to(dtype).contiguous() for name, t in weights.items()}
    if not_finite := first_not_finite(tensors):
        raise DivergedError(
            f"{spec.name} holds NaN or infinity in {not_finite} as {dtype}; {path.name} was not written"
        )
    header = {_SPEC: json.dumps(to_dict(spec.trained))}
    if origin is not None:
        header[ORIGIN] = json.dumps(to_dict(origin))
    with _replacing(path) as draft:
        _write_tensors(draft, tensors, header)
    write_stage_spec(folder, spec)
    return path


def write_stage_spec(folder: Path, spec: StageSpec) -> None:
    """Write a stage's specification `NAME.json`, which may change how the weights beside it are sampled."""
    with _replacing(folder / f"{spec.name}.json") as draft:
        draft.write_text(json.dumps(to_dict(spec), indent=1) + "\n")


def read_stage_spec(folder: Path, name: str) -> StageSpec:
    """Read a stage's specification without its weights."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no {name}.json; expected a folder with a trained {name}; name one")
    try:
        with path.open("rb") as file:
            values = decode_json(file.read(MAX_BYTES + 1))
    except ValueError as error:
        raise UsageError(
            f"{path} is no JSON ({one_line(error)}); expected the specification of a {name}; choose another "
            "version"
        ) from error
    spec = from_dict(StageSpec, values, path.name)
    if spec.name != name:
        raise UsageError(f"{path} describes the stage {spec.name}; expected {name}")
    return spec


def load_stage(folder: Path, name: str, expected: StageSpec | None = None) -> Denoiser:
    """Load a stage for use: its network in float32, in evaluation mode, frozen.

    Another stage, schedule or shape than `expected` is refused before the weights are read, naming the field;
    weights that are not finite are refused. The stage is sampled as `expected` says (`StageSpec.trained`),
    else as its own specification says.
    """
    spec = read_stage_spec(folder, name)
    if expected is not None and (difference := first_difference(expected.trained, spec.trained)):
        raise UsageError(
            f"{folder} holds another {name}: {difference}; choose weights of this recipe or `--set "
            "init=scratch`"
        )
    path = folder / f"{name}.safetensors"
    trained = check_header(path, name, spec.unet)
    if trained is not None and (
        difference := first_difference(spec.trained, _trained_as(path, trained).trained)
    ):
        raise UsageError(
            f"{path} was trained as another {name} than {name}.json says: {difference}; choose another "
            "version"
        )
    denoiser = Denoiser(expected or spec)
    denoiser.net.load_state_dict(read_weights(path))
    return denoiser.eval().requires_grad_(False)


def _trained_as(path: Path, text: str) -> StageSpec:
    """The specification in a weights' header."""
    try:
        return from_dict(StageSpec, decode_json(text), path.name)
    except ValueError as error:
        raise UsageError(
            f"{path} says that it was trained as no stage ({one_line(error)}); choose another version"
        ) from error


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_complete(path: Path) -> bool:
    """Whether the manifest is there and every file matches it."""
    digests = _manifest(path)
    return _matches(path, digests, _STATE, *digests)


def _manifest(path: Path) -> dict[str, str]:
    """Digests of a checkpoint's files; empty if they cannot be read."""
    try:
        digests: dict[str, str] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return digests


def _matches(path: Path, digests: Mapping[str, str], *names: str) -> bool:
    """Whether these files of a checkpoint match its manifest."""
    try:
        return all(file_sha256(path / name) == digests.get(name) for name in names)
    except OSError:
        return False


def _loss(path: Path) -> float:
    """Loss of a checkpoint; infinite if it has none."""
    try:
        loss = json.loads((path / _STATE).read_text()).get("loss")
    except (OSError, ValueError):
        loss = None
    return math.inf if loss is None else float(loss)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, whose file replaces `path` once it is complete and on disk."""
    draft = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        yield draft
        _sync(draft)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _differs(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    left = dict(_leaves(expected))
    right = dict(_leaves(found))
    for name in sorted(left.keys() | right.keys()):
        now, then = left.get(name, "absent"), right.get(name, "absent")
        if now != then:
            return f"{name} was {then}, is {now}"
    return None


def _leaves(values: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for name in sorted(values):
            yield from _leaves(values[name], f"{where}.{name}" if where else name)
    else:
        yield where, values


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
