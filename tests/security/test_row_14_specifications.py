"""A model from others costs no more than its files: nonsense is refused before anything is allocated."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffbfr.checkpoint import load_stage, read_stage_spec
from diffbfr.errors import UsageError
from diffbfr.models.denoiser import Denoiser
from diffbfr.spec import to_dict
from diffbfr.stages import IRM1, IRM1_TINY, IRM2, TEM
from diffbfr.unet_spec import UNetSpec

Values = dict[str, Any]


def with_unet(**fields: object) -> Callable[[Values], None]:
    return lambda values: values["unet"].update(fields)


def with_field(name: str, value: object) -> Callable[[Values], None]:
    return lambda values: values.update({name: value})


def with_schedule(**fields: object) -> Callable[[Values], None]:
    return lambda values: values["schedule"].update(fields)


NONSENSE: dict[str, Callable[[Values], None]] = {
    "8,192 channels": with_unet(inner_channels=8192),
    "a multiplier of 10^9": with_unet(channel_multipliers=[1, 2, 10**9]),
    "10^6 blocks": with_unet(res_blocks=[10**6, 1, 1]),
    "no blocks": with_unet(res_blocks=[1, 0, 1]),
    "10,000 levels": with_unet(channel_multipliers=[1] * 10_000, res_blocks=[1] * 10_000),
    "no levels": with_unet(channel_multipliers=[], res_blocks=[]),
    "images of 2^40 px": with_unet(image_px=2**40),
    "images of 0 px": with_unet(image_px=0),
    "patches of -1 px": with_unet(patch_px=-1),
    "patches of 1,024 px": with_unet(patch_px=1024, image_px=4096),
    "groups of 0": with_unet(norm_groups=0),
    "heads of 0": with_unet(head_channels=0),
    "attention over 2,048 px": with_unet(image_px=2048, attention_px=[2048]),
    "the middle attends over 512 px": with_unet(image_px=2048),
    "attention over -8 px": with_unet(attention_px=[-8]),
    "10,000 attention levels": with_unet(attention_px=[8] * 10**4),
    "dropout of 1": with_unet(dropout=1.0),
    "dropout of NaN": with_unet(dropout=float("nan")),
    "10^9 steps": with_schedule(num_steps=10**9),
    "beta of NaN": with_schedule(beta_1=float("nan")),
    "prior of NaN": with_field("prior_std", float("nan")),
    "prior of infinity": with_field("prior_std", float("inf")),
    "prior of 10^300": with_field("prior_std", 1e300),
    "a name of 100 kB": with_field("name", "x" * 100_000),
    "an unknown field of 100 kB": with_field("x" * 100_000, 1),
    "a number of 40 digits": with_field("start", 10**40),
    "text for a number": with_field("start", "2000"),
    "true for a number": with_field("start", True),
}


def write(folder: Path, values: Values) -> None:
    (folder / "irm1.json").write_text(json.dumps(values))


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A trained IRM-1 as `save_stage` writes it."""
    from diffbfr.checkpoint import save_stage

    save_stage(tmp_path, IRM1_TINY, Denoiser(IRM1_TINY).net.state_dict())
    return tmp_path


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_specification_of_nonsense_is_one_line(tmp_path: Path, nonsense: Callable[[Values], None]) -> None:
    values = to_dict(IRM1_TINY)
    nonsense(values)
    write(tmp_path, values)
    with pytest.raises(UsageError) as refused:
        read_stage_spec(tmp_path, "irm1")
    assert len(str(refused.value)) < 1000 + len(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        "[" * 500 + "]" * 500,
        "1" * 5_000,
        '{"start": ' + "9" * 4_000 + "}",
        " " * (2 << 20),
        "\x00\xff",
        "",
    ],
    ids=["open", "deep objects", "deep lists", "digits", "digits inside", "2 MiB", "no text", "empty"],
)
def test_a_specification_that_is_no_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "irm1.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError) as refused:
        read_stage_spec(tmp_path, "irm1")
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_table_6_and_the_small_stages_are_within_the_bounds() -> None:
    for spec in (IRM1, IRM2, TEM):
        assert replace(spec, unet=replace(spec.unet)) == spec
    largest = UNetSpec(2048, 6, 3, 64, (1, 2, 4, 8, 16), (16,) * 5, (128,))
    assert largest.level_px(4) == 128


def test_the_shapes_are_compared_before_anything_is_allocated(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = to_dict(IRM1_TINY)
    values["unet"] |= {"inner_channels": 1024, "channel_multipliers": [1, 2, 4], "res_blocks": [16, 16, 16]}
    write(stage, values)
    monkeypatch.setattr("diffbfr.checkpoint.Denoiser", lambda spec: pytest.fail("the network was made"))
    monkeypatch.setattr("diffbfr.weights.load_file", lambda path: pytest.fail("the weights were read"))
    with pytest.raises(UsageError, match=r"of shape .*; expected .*; the file is not of this irm1"):
        load_stage(stage, "irm1")


def header(values: object, data: bytes = b"") -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[int], start: int, end: int) -> Values:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "a header of 8 MB": header({"x" * (8 << 20): tensor("F32", [1], 0, 4)}, bytes(4)),
    "a header that is no JSON": struct.pack("<Q", 4) + b"[[[[",
    "a deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "tensors that overlap": header(
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)
    ),
    "a tensor beyond the file": header({"a": tensor("F32", [1 << 40], 0, 1 << 42)}, bytes(4)),
    "a shape that overflows": header({"a": tensor("F32", [2**62, 2**62], 0, 4)}, bytes(4)),
    "a hole": header({"a": tensor("F32", [1], 8, 12)}, bytes(12)),
    "offsets that go back": header({"a": tensor("F32", [1], 4, 0)}, bytes(4)),
    "nothing": b"",
    "seven bytes": b"\x01" * 7,
    "a pickle": b"\x80\x04\x95" + b"cos\nsystem\n(S'touch owned'\ntR." * 10,
    "a zip, as torch.save writes": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_one_line(stage: Path, lie: bytes) -> None:
    (stage / "irm1.safetensors").write_bytes(lie)
    with pytest.raises(UsageError) as refused:
        load_stage(stage, "irm1")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600 + len(str(stage))


def test_a_pipe_in_the_place_of_weights_is_refused(stage: Path) -> None:
    (stage / "irm1.safetensors").unlink()
    os.mkfifo(stage / "irm1.safetensors")
    with pytest.raises(UsageError, match="there is no such file"):
        load_stage(stage, "irm1")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_tensors_of_another_type_are_refused(stage: Path, dtype: torch.dtype) -> None:
    weights = {name: t.to(dtype) for name, t in Denoiser(IRM1_TINY).net.state_dict().items()}
    save_file(weights, stage / "irm1.safetensors")
    with pytest.raises(UsageError, match="expected F32, F16, BF16, F64"):
        load_stage(stage, "irm1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_no_numbers_are_refused(stage: Path, value: float) -> None:
    weights = {name: t.to(torch.float64) for name, t in Denoiser(IRM1_TINY).net.state_dict().items()}
    weights["head.bias"][0] = value
    save_file(weights, stage / "irm1.safetensors")
    with pytest.raises(UsageError, match=r"NaN or infinity in head\.bias"):
        load_stage(stage, "irm1")


@pytest.mark.parametrize("trained", ["[" * 10_000, "{}", '{"name": "irm1"}', "9" * 5000, "null"])
def test_a_header_with_a_nonsensical_specification_is_one_line(stage: Path, trained: str) -> None:
    save_file(Denoiser(IRM1_TINY).net.state_dict(), stage / "irm1.safetensors", {"spec": trained})
    with pytest.raises(UsageError) as refused:
        load_stage(stage, "irm1")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600 + len(str(stage))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"inner_channels": 8192},
        {"res_blocks": [10**6, 1, 1]},
        {"inner_channels": 1024, "res_blocks": [16] * 3},
    ],
)
def test_a_restore_with_such_a_model_is_exit_2_and_costs_nothing(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    """Peak memory of the process, beside the same command with a model that is not there."""
    from diffbfr.cascade import packaged_cascade

    model = tmp_path / "model"
    model.mkdir()
    for path in packaged_cascade().iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    values = json.loads((model / "irm1.json").read_text())
    values["unet"] |= fields
    (model / "irm1.json").write_text(json.dumps(values))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "face.png").write_bytes(b"no picture")
    command = ["restore", str(tmp_path / "in"), str(tmp_path / "out"), "--aligned", "--model", str(model)]
    command += ["--set", "cluster.num_workers=0"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *command],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()[-1]) < 500
    assert "Traceback" not in done.stderr
