"""Specifications survive JSON exactly, and anything else than a specification is refused by name."""

import json
from dataclasses import replace
from typing import Any

import pytest

from diffbfr.errors import UsageError
from diffbfr.spec import digest, first_difference, from_dict, to_dict
from diffbfr.stages import IRM1, IRM2, TEM, TEM_DIFFACE, StageSpec
from diffbfr.training.config import TrainingConfig

CONFIG = TrainingConfig(num_samples=10, global_batch=2, learning_rate=1e-4)


@pytest.mark.parametrize(
    "spec", [IRM1, IRM2, TEM, TEM_DIFFACE, CONFIG], ids=["irm1", "irm2", "tem", "difface", "training"]
)
def test_a_specification_survives_json(spec: Any) -> None:
    assert from_dict(type(spec), json.loads(json.dumps(to_dict(spec)))) == spec


def _changed(path: str, value: object) -> dict[str, Any]:
    values = to_dict(TEM)
    *parents, name = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("unet.colour", 1, "StageSpec.unet has the unknown field 'colour'"),
        ("unet.image_px", "512", "StageSpec.unet.image_px is '512'; expected int"),
        ("unet.image_px", True, "StageSpec.unet.image_px is True; expected int"),
        ("unet.image_px", 512.0, r"StageSpec.unet.image_px is 512.0; expected int"),
        ("unet.scale_shift", 1, "StageSpec.unet.scale_shift is 1; expected bool"),
        ("unet.dropout", None, "StageSpec.unet.dropout is None; expected float"),
        ("unet.res_blocks", 3, "StageSpec.unet.res_blocks is 3; expected a list"),
        ("unet.res_blocks", [1, "2"], "StageSpec.unet.res_blocks is '2'; expected int"),
        ("unet.head_channels", "64", "StageSpec.unet.head_channels is '64'; expected int"),
        ("unet", [], "StageSpec.unet is list; expected an object"),
        ("loss", "l3", "StageSpec.loss is 'l3'; expected one of l1, l2"),
        ("start", 0, "tem has start=0"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(path: str, value: object, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        from_dict(StageSpec, _changed(path, value))


def test_a_field_that_came_later_is_written_only_where_it_is_used() -> None:
    """The specification of a stage that does not use it keeps its bytes, and with them its digest."""
    assert "first_step" not in to_dict(TEM)["unet"]
    assert to_dict(TEM_DIFFACE)["unet"]["first_step"] == 0
    assert first_difference(TEM, TEM_DIFFACE) == "unet.first_step: found 0, expected 1"
    assert digest(TEM) != digest(TEM_DIFFACE)


def test_a_missing_field_is_refused_unless_it_has_a_default() -> None:
    values = to_dict(TEM)
    del values["loss"], values["unet"]["patch_px"]
    assert from_dict(StageSpec, values) == TEM
    del values["unet"]["image_px"]
    with pytest.raises(UsageError, match=r"StageSpec\.unet has no field 'image_px'"):
        from_dict(StageSpec, values)


def test_a_whole_number_will_do_for_a_float_and_null_for_an_option() -> None:
    values = _changed("fast.end_half_log_snr", 4)
    values["unet"]["head_channels"] = None
    made = from_dict(StageSpec, values)
    assert isinstance(made.fast.end_half_log_snr, float)
    assert made.unet.head_channels is None


def test_equal_specifications_differ_in_nothing_and_have_one_digest() -> None:
    again = from_dict(StageSpec, to_dict(IRM2))
    assert first_difference(IRM2, again) is None
    assert digest(IRM2) == digest(again)


def test_the_first_differing_field_is_named_in_the_order_of_the_specification() -> None:
    other = replace(IRM2, start=600, unet=replace(IRM2.unet, inner_channels=32, norm_groups=8))
    assert first_difference(IRM2, other) == "unet.inner_channels: found 32, expected 64"
    assert first_difference(IRM2, replace(IRM2, start=600)) == "start: found 600, expected 1000"
    assert digest(IRM2) != digest(other)
