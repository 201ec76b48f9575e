"""Slots of the cascade's batches that no face fills, on a device whose batches are padded.

`python -m tests.benchmarks.batches [--batch N] [--unit N] [--redrawn SHARE]` runs the faces of composed photos
(0 to 8 each) through the product's queue, with a cascade that only counts, and prints how many slots were
filled up. A share of the faces is drawn again from lower starts.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from diffbfr.cascade import Restoration
from diffbfr.stages import Mode
from pipelines.restoration.face_queue import FaceDraw, FaceQueue

PX = 16
MOST_FACES = 8


@dataclass
class CountingCascade:
    """Gives back its input, and notes the keys and the fidelities of each batch."""

    is_batch_invariant: bool = False
    batches: list[tuple[Sequence[str], Sequence[float]]] = field(default_factory=list)

    def restore(
        self,
        x_0: Float[Tensor, "b 3 lq lq"],
        noise_keys: Sequence[str],
        mode: Mode,
        fidelity: Sequence[float] | None = None,
    ) -> Restoration:
        self.batches.append((tuple(noise_keys), tuple(fidelity or ())))
        return Restoration(x_0, x_0, x_0)

    def num_padded(self) -> int:
        """Slots that hold a face which is in the batch already."""
        return sum(len(keys) - len(set(keys)) for keys, _ in self.batches)

    def num_mixed(self) -> int:
        """Batches of faces from different starts."""
        return sum(len(set(fidelities)) > 1 for _, fidelities in self.batches)


def draw_of(key: str, *, is_doubtful: bool) -> FaceDraw:
    """A black face; a doubtful one does not look like its photo, so it is drawn once more."""
    pixels = np.zeros((PX, PX, 3), np.uint8)
    return FaceDraw(pixels, key, seen=pixels + (255 if is_doubtful else 0), min_consistency=20.0)


def run_units(photos: int, batch: int, unit: int, redrawn: float, seed: int = 0) -> CountingCascade:
    """Run photos unit by unit, as `pipelines.steps.restore` does."""
    generator, cascade = random.Random(seed), CountingCascade()
    for first in range(0, photos, unit):
        queue = FaceQueue(cascade, "fast", batch)
        for photo in range(first, min(photos, first + unit)):
            faces = range(generator.randint(0, MOST_FACES))
            queue.add([draw_of(f"{photo}/{i}", is_doubtful=generator.random() < redrawn) for i in faces])
            queue.run()
        queue.run(until_empty=True)
    return cascade


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--unit", type=int, default=16)
    parser.add_argument("--redrawn", type=float, default=0.05)
    words = parser.parse_args()
    cascade = run_units(words.photos, words.batch, words.unit, words.redrawn)
    slots = len(cascade.batches) * words.batch
    print(
        f"{words.photos} photos in units of {words.unit}: {len(cascade.batches)} batches of {words.batch}, "
        f"{cascade.num_mixed()} of them of several starts, {cascade.num_padded()} of {slots} slots padded "
        f"({cascade.num_padded() / slots:.1%})"
    )


if __name__ == "__main__":
    main()
