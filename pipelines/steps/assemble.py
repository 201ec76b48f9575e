"""Assemble a cascade: the weights of each trained stage, beside the specification that it is sampled with."""

import json
from collections.abc import Mapping

from diffbfr.spec import to_dict
from diffbfr.stages import StageName, StageSpec
from pipelines import storage


def assemble(folder: str, stages: Mapping[StageName, tuple[StageSpec, str]]) -> list[str]:
    """Copy the weights out of the folder of each training, and name the files that this wrote; `cascade.json` is the caller's, last."""
    written = []
    for name, (spec, trained) in stages.items():
        weights = storage.read_bytes(storage.join(trained, f"{name}.safetensors"))
        for file, data in ((f"{name}.json", spec_text(spec)), (f"{name}.safetensors", weights)):
            storage.write_atomic(storage.join(folder, file), data)
            written.append(file)
    return written


def spec_text(spec: StageSpec) -> bytes:
    """A stage's specification as the file that lies beside its weights."""
    return (json.dumps(to_dict(spec), indent=1) + "\n").encode()
