"""How studies name the sampler of a stage: SOLVER:EVALUATIONS[:END][@START], such as `ddim:4:1.0@300`."""

import re
from dataclasses import replace
from typing import Final, cast, get_args

from diffbfr.errors import UsageError
from diffbfr.stages import SamplerSpec, Solver, StageSpec

FORM: Final = "SOLVER:EVALUATIONS[:END][@START], such as sde_dpmpp_2m:20:4.0"
_WORD: Final = re.compile(
    rf"(?P<solver>{'|'.join(get_args(Solver))}):(?P<evaluations>[1-9][0-9]*)(:(?P<end>-?[0-9]+(\.[0-9]+)?))?"
    r"(@(?P<start>[1-9][0-9]*))?"
)


def sampled(stage: StageSpec, word: str) -> StageSpec:
    """The stage with another sampler in mode `fast`; END and START are its own where they are not named.

    UsageError if the word is no sampler.
    """
    parts = _WORD.fullmatch(word)
    if parts is None:
        raise UsageError(f"found the sampler {word!r}; expected {FORM}")
    end = stage.fast.end_half_log_snr if parts["end"] is None else float(parts["end"])
    start = stage.start if parts["start"] is None else int(parts["start"])
    fast = SamplerSpec(cast("Solver", parts["solver"]), int(parts["evaluations"]), end)
    return replace(stage, fast=fast, start=start)
