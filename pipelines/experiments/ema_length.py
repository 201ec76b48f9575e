"""Study: which length of the averaged weights restores best, chosen after training on the validation split.

    diffbfr run --recipe tiny --set irm2.training.ema_lengths=0.05,0.1 \\
        --set irm2.training.average_samples=4000 --root build/tiny
    python -m pipelines.experiments.ema_length build/tiny irm2 0.03 0.05 0.1 0.15 0.2

The weights of each length are reconstructed from the power-function averages that the training kept
(`diffbfr.training.post_hoc`) and replace the stage's in the cascade. Prints a line for each length: the
scores of the whole cascade, and the error of the reconstructed averaging profile.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffbfr.checkpoint import read_stage_spec, save_stage
from diffbfr.errors import UsageError
from diffbfr.stages import StageName
from diffbfr.training.loop import AVERAGES
from diffbfr.training.post_hoc import reconstruct
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.quality_curve import NUM_FACES, evaluate_with, means, perceptual_with


def measure(root: str, stage: StageName, lengths: Sequence[float]) -> dict[float, dict[str, float]]:
    """Scores of the whole cascade by length; UsageError if the root has no finished run or no averages."""
    store = ArtifactStore(root)
    cascade, dataset, trained = (store.latest(step) for step in ("cascade", "shard", f"train-{stage}"))
    if cascade is None or dataset is None or trained is None:
        raise UsageError(
            f"{root} holds no cascade with {stage}; expected a finished run; run the command in this file's "
            "first lines"
        )
    whole, data = Path(store.artifact_dir(cascade.identity)), store.artifact_dir(dataset.identity)
    averages = Path(store.artifact_dir(trained.identity), AVERAGES)
    keys = tuple(open_dataset(data).keys("val"))[:NUM_FACES]
    found = {}
    for length in lengths:
        weights, chosen = reconstruct(averages, stage, length)
        with tempfile.TemporaryDirectory() as folder:
            save_stage(Path(folder), read_stage_spec(whole, stage), weights)
            found[length] = means(evaluate_with(whole, stage, Path(folder), data, keys))["tem"]
            perceptual = perceptual_with(whole, stage, Path(folder), data, keys, ("tem",))
            found[length] |= perceptual["tem"].means if perceptual else {}
        scores = "  ".join(f"{name} {value:.4f}" for name, value in found[length].items())
        sys.stdout.write(f"length {length:<6g} {scores}  error of the profile {chosen.error:.3f}\n")
    return found


if __name__ == "__main__":
    measure(sys.argv[1], sys.argv[2], [float(length) for length in sys.argv[3:]])  # type: ignore[arg-type]
