"""A training that the same command continues: networks, optimisers and averages in one safetensors file.

What a step sees is keyed by the seed and the step, so a training that was interrupted ends with the same
weights as one that was not.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_STEP = "step"


@dataclass(frozen=True)
class ToyState:
    """Everything that a step changes."""

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    averages: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)


def generator_of(seed: int, *names: object) -> torch.Generator:
    """A random generator keyed by the seed and names, such as a model and a step."""
    text = "/".join(map(str, (seed, *names)))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))


def run_steps(
    state: ToyState, step: Callable[[int], None], num_steps: int, file: Path, save_every: int = 200
) -> None:
    """Call `step(0)`, `step(1)`, ...; continue after the last step that `file` holds."""
    first = _load(state, file) if file.is_file() else 0
    for number in range(first, num_steps):
        step(number)
        if (number + 1) % save_every == 0 or number + 1 == num_steps:
            _save(state, file, number + 1)


def _save(state: ToyState, file: Path, done: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    save_file(_tensors(state), partial, metadata={_STEP: str(done)})
    partial.replace(file)


def _load(state: ToyState, file: Path) -> int:
    """Restore the state; the number of steps that are done."""
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        done = int(stored.metadata()[_STEP])
    for name, network in state.networks.items():
        network.load_state_dict(_below(tensors, f"network/{name}/"))
    for name, optimizer in state.optimizers.items():
        _restore_optimizer(optimizer, _below(tensors, f"optimizer/{name}/"))
    for name, average in state.averages.items():
        average.update(_below(tensors, f"average/{name}/"))
    return done


def _tensors(state: ToyState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, network in state.networks.items():
        tensors |= _above(network.state_dict(), f"network/{name}/")
    for name, optimizer in state.optimizers.items():
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= _above(moments, f"optimizer/{name}/{number}/")
    for name, average in state.averages.items():
        tensors |= _above(average, f"average/{name}/")
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, kind = name.partition("/")
        moments.setdefault(int(number), {})[kind] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _above(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
