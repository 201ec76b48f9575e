"""The public checkpoints that can be imported: what each is, which stage it fits, and its licence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from diffbfr.documents import abridged
from diffbfr.errors import UsageError
from diffbfr.importing.guided_diffusion import guided_diffusion_layout
from diffbfr.importing.layout import Layout, convert, differences
from diffbfr.importing.pth import check_members, read_tensors
from diffbfr.importing.sr3 import PREFIX, SCHEDULE, sr3_layout
from diffbfr.schedule import noise_schedule
from diffbfr.stages import IRM1, IRM2_SR3, TEM_DIFFACE, StageName, StageSpec
from diffbfr.unet_spec import UNetSpec

Family = Literal["sr3", "difface"]
_FFHQ: Final = (
    "It was trained on FFHQ, whose images are under CC BY-NC-SA 4.0 (non-commercial, by name, share alike; "
    "https://github.com/NVlabs/ffhq-dataset)."
)
_FEW: Final = 0.5
"""A file with fewer of a network's tensors than this share holds another network."""


@dataclass(frozen=True)
class PublicCheckpoint:
    """A checkpoint that others published, and the stage that it is imported as."""

    family: Family
    title: str
    stage: StageSpec
    layout_of: Callable[[UNetSpec], Layout]
    licence: str
    terms: str

    @property
    def layout(self) -> Layout:
        """Its tensors by our names."""
        return self.layout_of(self.stage.unet)


_SR3_LICENCE: Final = "Apache-2.0; trained on FFHQ (CC BY-NC-SA 4.0, non-commercial)"
_SR3_TERMS: Final = (
    "The repository https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement is under "
    f"Apache-2.0 and names no other licence for its weights. {_FFHQ}"
)
PUBLIC: Final = (
    PublicCheckpoint("sr3", "SR3 16 -> 128 px", IRM1, sr3_layout, _SR3_LICENCE, _SR3_TERMS),
    PublicCheckpoint("sr3", "SR3 64 -> 512 px", IRM2_SR3, sr3_layout, _SR3_LICENCE, _SR3_TERMS),
    PublicCheckpoint(
        "difface",
        "DifFace FFHQ 512 px",
        TEM_DIFFACE,
        guided_diffusion_layout,
        "S-Lab License 1.0, non-commercial; trained on FFHQ (CC BY-NC-SA 4.0, non-commercial)",
        "S-Lab License 1.0 permits non-commercial use and redistribution alone, with its notice; for other "
        f"purposes ask the authors (https://github.com/zsyOAOA/DifFace). {_FFHQ}",
    ),
)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A file with the names and shapes of a public checkpoint's tensors; their numbers are not read yet."""

    path: Path
    checkpoint: PublicCheckpoint
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    """What differs from the published file and changes nothing in the weights."""

    def read(self) -> dict[str, Tensor]:
        """Our tensors, converted; UsageError if the file is damaged or a number is not finite."""
        check_members(self.path)
        return convert(self.checkpoint.layout, self.tensors, str(self.path))


def open_checkpoint(path: Path, family: Family, stage: StageName | None = None) -> OpenedCheckpoint:
    """Open a file and find which checkpoint of the family it is; UsageError names the first difference.

    `stage` is the one expected; None takes what the file is.
    """
    tensors, tables = _without_schedule(read_tensors(path), family)
    candidates = [known for known in PUBLIC if known.family == family]
    found = next((known for known in candidates if not _first(known, tensors)), None)
    if found is None:
        raise _no_checkpoint(path, candidates, tensors)
    if stage is not None and stage != found.stage.name:
        fitting = [known.title for known in candidates if known.stage.name == stage]
        raise UsageError(
            f"{path} is {found.title}, weights of {found.stage.name}; expected those of {stage}; "
            + (f"name the file of {fitting[0]}" if fitting else f"say --stage {found.stage.name}")
        )
    return OpenedCheckpoint(path, found, tensors, _schedule_notes(found.stage, tables))


def _without_schedule(
    tensors: Mapping[str, Tensor], family: Family
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's tensors by their own names, and the tables of the schedule saved beside them."""
    prefixes = ("module.", PREFIX, "module.") if family == "sr3" else ("module.",)
    names = {name: _stripped(name, prefixes) for name in tensors}
    dropped = SCHEDULE if family == "sr3" else frozenset()
    network = {short: tensors[name] for name, short in names.items() if short not in dropped}
    return network, {short: tensors[name] for name, short in names.items() if short in dropped}


def _stripped(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _first(known: PublicCheckpoint, tensors: Mapping[str, Tensor]) -> str | None:
    return next(differences(known.layout, tensors, known.title), None)


def _no_checkpoint(
    path: Path, candidates: list[PublicCheckpoint], tensors: Mapping[str, Tensor]
) -> UsageError:
    """The error for a file that is none of the candidates: how it differs from the nearest."""
    nearest = min(
        candidates, key=lambda known: sum(1 for _ in differences(known.layout, tensors, known.title))
    )
    wanted = {part.name for part in nearest.layout.values()}
    titles = " or ".join(f"{known.title} ({len(known.layout)} tensors)" for known in candidates)
    shared = len(wanted & tensors.keys())
    if shared < _FEW * len(wanted):
        example = abridged(next(iter(tensors)))
        return UsageError(
            f"{path} is another network: {len(tensors)} tensors such as {example}, {shared} of them known; "
            f"expected {titles}; name the file of one"
        )
    first, *more = islice(differences(nearest.layout, tensors, nearest.title), 1000)
    rest = f" (and {len(more)} more differences)" if more else ""
    return UsageError(
        f"{path} is not {nearest.title}: {first}{rest}; expected {titles}; fetch it again, or name another"
    )


def _schedule_notes(stage: StageSpec, tables: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A note if the file was saved with another schedule than the stage is sampled with."""
    betas = tables.get("betas")
    if betas is None:
        return ()
    expected = noise_schedule(stage.schedule).beta[1:]
    if betas.shape == expected.shape and torch.allclose(betas.to(torch.float64), expected, rtol=1e-4):
        return ()
    return (
        f"the file was saved with another schedule of noise than {stage.name} is sampled with (beta "
        f"{stage.schedule.beta_1} to {stage.schedule.beta_T} over {stage.schedule.num_steps} steps); the "
        "weights are taken, the schedule is not",
    )
