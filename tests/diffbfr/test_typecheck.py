"""Shapes and types are checked in every test, also those of functions that are made in functions."""

import pytest
import torch
from jaxtyping import TypeCheckError

from diffbfr.keys import noise_key
from diffbfr.samplers import keyed_noise


@pytest.mark.parametrize("px", [8, 16])
def test_a_nested_function_is_checked_each_time_that_it_is_made(px: int) -> None:
    draw = keyed_noise([noise_key("a")], "irm1", px)
    assert draw(torch.tensor([3])).shape == (1, 3, px, px)
    with pytest.raises(TypeCheckError, match="steps"):
        draw(torch.tensor([3.0]))
    with pytest.raises(TypeCheckError, match="steps"):
        draw(torch.tensor([[3]]))
