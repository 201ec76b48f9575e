"""Copy a root's trained cascade into the package: half-precision weights, specifications, their origin.

    diffbfr run --recipe tiny --root build/tiny
    python -m pipelines.experiments.package_cascade build/tiny [NOTE]

`diffbfr/weights/tiny` was made in this way; a note is stored in its record.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

from diffbfr.cascade import cascade_digest, packaged_cascade, write_record
from diffbfr.checkpoint import load_stage, read_stage_spec, save_stage
from diffbfr.errors import UsageError
from diffbfr.origin import read_origin
from diffbfr.stages import STAGE_NAMES
from pipelines.execution.artifact_store import ArtifactStore

MAX_BYTES = 6_000_000


def package(root: str, note: str = "") -> None:
    """Copy the newest cascade of a root; UsageError if there is none or it is larger than `MAX_BYTES`."""
    store = ArtifactStore(root)
    record = store.latest("cascade")
    if record is None:
        raise UsageError(
            f"{root} holds no cascade; expected a finished run; run `diffbfr run --recipe tiny --root "
            f"{root}` first"
        )
    source, target = Path(store.artifact_dir(record.identity)), packaged_cascade()
    target.mkdir(parents=True, exist_ok=True)
    for name in STAGE_NAMES:
        save_stage(
            target,
            read_stage_spec(source, name),
            load_stage(source, name).net.state_dict(),
            torch.float16,
            read_origin(source / f"{name}.safetensors"),
        )
    samples = {
        name: trained.metadata["samples"]
        for name in STAGE_NAMES
        if (trained := store.by_id(record.metadata["stages"][name]["artifact"]))
    }
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    command = (
        f"diffbfr run --recipe {record.metadata['recipe']} && python -m "
        "pipelines.experiments.package_cascade ROOT"
    )
    origin = {"samples": samples, "command": command, "commit": commit, "weights": "float16"}
    write_record(target, {**record.metadata, **origin} | ({"note": note} if note else {}))
    total = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    if total > MAX_BYTES:
        raise UsageError(
            f"the weights have {total:,} bytes; expected at most {MAX_BYTES:,}; make the stages smaller"
        )
    sys.stdout.write(
        json.dumps({"folder": str(target), "bytes": total, "digest": cascade_digest(target)}, indent=1) + "\n"
    )


if __name__ == "__main__":
    package(*sys.argv[1:3])
