"""What checks the shapes of diffbfr in the tests refuses a wrong one, and is made once for a nested function."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests import typecheck


def nested() -> Callable[[Tensor, list[Tensor]], Tensor]:
    @jaxtyped(typechecker=typecheck.check)
    def first(x: Float[Tensor, "a b"], others: list[Float[Tensor, " b"]]) -> Float[Tensor, " b"]:
        return x[0] if len(others) < 2 else x[:, 0]

    return first


def test_a_nested_function_is_checked_each_time_and_its_check_is_made_once() -> None:
    wide, others = torch.zeros(2, 3), [torch.zeros(3)]
    nested()(wide, others)
    made = typecheck._made_once.cache_info().misses
    for first in (nested(), nested()):
        first(wide, others)
        for argument, more in ((wide[0], others), (wide.int(), others), (wide, [torch.zeros(4)])):
            with pytest.raises(TypeCheckError):
                first(argument, more)
        with pytest.raises(TypeCheckError):
            first(wide, others * 2)
    # the three bad arguments and the bad result are looked for one by one
    assert typecheck._made_once.cache_info().misses - made <= 4
