"""A small network that names digits, trained on the whole of MNIST, to count what the toy models generate."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.experiments.toys.mnist import DIGITS, PX, Digits, to_model
from pipelines.experiments.toys.training import ToyState, generator_of, run_steps

BATCH: Final = 64
LEARNING_RATE: Final = 2e-3
CLEAR: Final = 0.9
"""A digit is clear if its label has at least this probability."""
_BATCH_OF_PICTURES: Final = 500


class Classifier(nn.Module):
    """Two convolutions and two linear layers: pictures in [-1, 1] to logits of the ten labels."""

    def __init__(self) -> None:
        super().__init__()
        side = PX // 4
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * side * side, 64),
            nn.ReLU(),
            nn.Linear(64, DIGITS),
        )

    @torch.no_grad()
    def name(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The label of every picture, and whether it is clear (`CLEAR`)."""
        parts = torch.split(to_model(pixels), _BATCH_OF_PICTURES)
        probabilities = torch.cat([self.net(part).softmax(1) for part in parts])
        best = probabilities.max(1)
        return best.indices.to(torch.uint8).numpy(), (best.values >= CLEAR).numpy()


def train_classifier(digits: Digits, num_samples: int, file: Path, seed: int = 0) -> Classifier:
    """Train on `num_samples` digits, drawn with replacement; the same file continues."""
    torch.manual_seed(seed)
    classifier = Classifier()
    optimizer = torch.optim.Adam(classifier.parameters(), LEARNING_RATE)
    data, labels = to_model(digits.pixels), torch.from_numpy(digits.labels.astype(np.int64))
    num_steps = -(-num_samples // BATCH)

    def step(number: int) -> None:
        rows = torch.randint(len(data), (BATCH,), generator=generator_of(seed, "classifier", number))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - number / num_steps)
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(classifier.net(data[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    run_steps(ToyState({"net": classifier}, {"net": optimizer}), step, num_steps, file)
    return classifier.eval()
