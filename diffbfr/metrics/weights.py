"""Load the weights of a metric's network from a safetensors file that holds exactly its tensors."""

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from diffbfr.errors import UsageError

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | Path, what: str) -> Network:
    """Fill a network from a file, for inference; UsageError unless names and shapes agree.

    `what` names the weights in the error.
    """
    remedy = f"expected the weights of {what}; run `diffbfr setup metrics`"
    if not Path(path).is_file():
        raise UsageError(f"no file {path}; {remedy}")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}); {remedy}") from error
    wanted = network.state_dict()
    if odd := sorted(stored.keys() ^ wanted.keys()):
        raise UsageError(f"{path} and the network differ in {odd[0]}; {remedy}")
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            raise UsageError(
                f"{path} has {tuple(stored[name].shape)} for {name}, not {tuple(tensor.shape)}; {remedy}"
            )
    network.load_state_dict(stored)
    return network.eval().requires_grad_(False)
