"""A checkpoint is whole or does not exist; weights load exactly, and what does not fit is refused by name
before it is read.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffbfr import checkpoint
from diffbfr.checkpoint import (
    FORMAT,
    MANIFEST,
    TrainingState,
    file_sha256,
    load_checkpoint,
    load_stage,
    read_stage_spec,
    save_checkpoint,
    save_stage,
)
from diffbfr.errors import UsageError
from diffbfr.models.denoiser import Denoiser
from diffbfr.origin import Origin, read_origin, read_origins
from diffbfr.spec import to_dict
from diffbfr.stages import SAMPLING, StageSpec
from tests.diffbfr.tiny import TINY_STAGES, wake

SPEC = TINY_STAGES["irm1"]
CONTRACT: dict[str, Any] = {
    "stage": to_dict(SPEC),
    "training": {"seed": 0, "global_batch": 4},
    "content_id": "abc",
}


def _state(step: int, value: float | None = None) -> TrainingState:
    weights = {"a": torch.full((2, 3), float(step if value is None else value)), "b": torch.arange(4.0)}
    return TrainingState(
        step, 4 * step, CONTRACT, {"model": weights, "optimizer": {"step/a": torch.tensor(float(step))}}
    )


def _steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    channels_last = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    state = replace(
        _state(7),
        tensors={
            "model": {"w": channels_last, "half": torch.randn(3).half()},
            "ema": {"w": channels_last + 1},
        },
    )
    path = save_checkpoint(tmp_path, state, keep=2)
    assert path == tmp_path / "step-00000007"
    found = load_checkpoint(tmp_path, CONTRACT)
    assert found is not None
    assert (found.step, found.samples, found.contract) == (7, 28, CONTRACT)
    assert {group: sorted(tensors) for group, tensors in found.tensors.items()} == {
        "model": ["half", "w"],
        "ema": ["w"],
    }
    for group, tensors in state.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[group][name], tensor)
            assert found.tensors[group][name].dtype == tensor.dtype


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "never made", CONTRACT) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 40):
        save_checkpoint(tmp_path, _state(step), keep=2)
    assert _steps(tmp_path) == ["step-00000003", "step-00000040"]


def test_the_one_of_least_loss_is_kept_too_if_that_is_wanted(tmp_path: Path) -> None:
    for step, loss in enumerate((None, 0.3, 0.5, 0.2, 0.4, 0.6, None), 1):
        save_checkpoint(tmp_path, replace(_state(step), loss=loss), keep=2, keep_best=True)
        assert (tmp_path / "step-00000004").exists() == (step >= 4)
    assert _steps(tmp_path) == ["step-00000004", "step-00000006", "step-00000007"]
    newest = load_checkpoint(tmp_path, CONTRACT)
    assert newest is not None
    assert (newest.step, newest.loss) == (7, None)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, _state(1), keep=2)
    state = path / "state.json"
    assert json.loads(state.read_text())["format"] == FORMAT
    state.write_text(state.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    digests = json.loads((path / MANIFEST).read_text()) | {"state.json": file_sha256(state)}
    (path / MANIFEST).write_text(json.dumps(digests))
    with pytest.raises(UsageError, match=f"has format {FORMAT + 1}; expected at most {FORMAT}"):
        load_checkpoint(tmp_path, CONTRACT)


def test_sealing_the_same_step_again_replaces_nothing(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, _state(3), keep=2)
    before = (path / "model.safetensors").stat().st_mtime_ns
    assert save_checkpoint(tmp_path, _state(3, value=99), keep=2) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_checkpoint_of_the_same_step_is_made_again(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, _state(3), keep=2)
    (path / "model.safetensors").write_bytes(b"cut")
    save_checkpoint(tmp_path, _state(3), keep=2)
    found = load_checkpoint(tmp_path, CONTRACT)
    assert found is not None
    assert found.step == 3


def test_the_seal_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write_text = Path.write_text

    def noting(path: Path, *arguments: Any, **options: Any) -> int:
        written.extend(sorted(file.name for file in path.parent.iterdir()))
        written.append(f"now {path.name}")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", noting)
    save_checkpoint(tmp_path, _state(1), keep=2)
    assert written[-1] == f"now {MANIFEST}"
    assert written[-4:-1] == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_a_crash_before_the_seal_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, _state(1), keep=2)

    def crash(path: Path, target: Path) -> Path:
        raise OSError(f"no room to rename {path} to {target}")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="no room"):
            save_checkpoint(tmp_path, _state(2), keep=2)
    found = load_checkpoint(tmp_path, CONTRACT)
    assert found is not None
    assert found.step == 1
    save_checkpoint(tmp_path, _state(2), keep=2)
    assert _steps(tmp_path) == ["step-00000001", "step-00000002"]


def _cut(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray((path / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "optimizer.safetensors").write_bytes(bytes(data))


def _lose_a_file(path: Path) -> None:
    (path / "state.json").unlink()


def _lose_the_seal(path: Path) -> None:
    (path / MANIFEST).unlink()


def _cut_the_seal(path: Path) -> None:
    (path / MANIFEST).write_text("{")


def _empty_the_seal(path: Path) -> None:
    (path / MANIFEST).write_text("{}")


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _lose_a_file, _lose_the_seal, _cut_the_seal, _empty_the_seal]
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_previous(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    save_checkpoint(tmp_path, _state(1), keep=2)
    damage(save_checkpoint(tmp_path, _state(2), keep=2))
    found = load_checkpoint(tmp_path, CONTRACT)
    assert found is not None
    assert found.step == 1
    assert float(found.tensors["model"]["a"][0, 0]) == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_sealed_before_damaged_checkpoints_of_later_steps_stays(tmp_path: Path, keep: int) -> None:
    for step in (9, 10)[-keep:]:
        _flip(save_checkpoint(tmp_path, replace(_state(step), loss=0.0), keep, keep_best=True))
    for step in (3, 6, 7, 10):  # from the beginning again
        path = save_checkpoint(tmp_path, replace(_state(step), loss=1 / step), keep, keep_best=True)
        found = load_checkpoint(tmp_path, CONTRACT)
        assert found is not None
        assert (path.name, found.step) == (f"step-{step:08d}", step)
    assert _steps(tmp_path)[-1] == "step-00000010"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"content_id": "def"}, "content_id was abc, is def"),
        ({"training": {"seed": 0, "global_batch": 8}}, r"training\.global_batch was 4, is 8"),
        ({"training": {"seed": 0, "global_batch": 4, "decay": 1}}, r"training\.decay was absent, is 1"),
        ({"training": {"global_batch": 4}}, r"training\.seed was 0, is absent"),
        ({"stage": to_dict(replace(SPEC, start=1000))}, r"stage\.start was 2000, is 1000"),
        (
            {"stage": to_dict(TINY_STAGES["irm2"])},
            r"stage\.name was irm1, is irm2|stage\.fast\.num_evaluations was 4, is 3",
        ),
    ],
)
def test_another_contract_is_refused_naming_the_field(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    save_checkpoint(tmp_path, _state(1), keep=2)
    with pytest.raises(UsageError, match=match):
        load_checkpoint(tmp_path, {**CONTRACT, **change})


def test_another_contract_is_refused_before_tensors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, _state(1), keep=2)
    for reader in ("load_file", "file_sha256"):
        reading = getattr(checkpoint, reader)
        monkeypatch.setattr(
            checkpoint,
            reader,
            lambda path, reading=reading: (
                reading(path) if path.suffix == ".json" else pytest.fail(f"{path} was read")
            ),
        )
    other = replace(SPEC, schedule=replace(SPEC.schedule, beta_T=2e-2))
    with pytest.raises(UsageError, match=r"stage\.schedule\.beta_T was 0\.01, is 0\.02"):
        load_checkpoint(tmp_path, {**CONTRACT, "stage": to_dict(other)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_sealed(tmp_path: Path, value: float) -> None:
    save_checkpoint(tmp_path, _state(1), keep=2)
    with pytest.raises(FloatingPointError, match="model holds NaN or infinity in a at step 2"):
        save_checkpoint(tmp_path, _state(2, value=value), keep=2)
    assert _steps(tmp_path) == ["step-00000001"]


# A stage's weights


def _weights() -> dict[str, Tensor]:
    return {name: p.detach() for name, p in wake(Denoiser(SPEC)).net.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stage_comes_back_for_use_with_its_specification(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = _weights()
    path = save_stage(tmp_path, SPEC, weights, dtype)
    assert path == tmp_path / "irm1.safetensors"
    assert _steps(tmp_path) == ["irm1.json", "irm1.safetensors"]
    assert path.stat().st_size < 1.2 * sum(t.numel() for t in weights.values()) * dtype.itemsize + 10_000
    denoiser = load_stage(tmp_path, "irm1", expected=SPEC)
    assert denoiser.spec == SPEC == read_stage_spec(tmp_path, "irm1")
    assert not denoiser.training
    for name, p in denoiser.net.named_parameters():
        assert not p.requires_grad
        assert p.dtype == torch.float32
        assert torch.equal(p, weights[name].to(dtype).to(torch.float32))


def test_the_origin_of_weights_lies_in_their_header(tmp_path: Path) -> None:
    """Weights of one's own have the bytes that they had before there was one."""
    origin = Origin("SR3", "gen.pth", "ab" * 32, "Apache-2.0", "trained on FFHQ")
    own = save_stage(tmp_path / "own", SPEC, _weights())
    theirs = save_stage(tmp_path / "theirs", SPEC, _weights(), origin=origin)
    assert (read_origin(own), read_origin(theirs)) == (None, origin)
    assert read_origins(tmp_path / "theirs", ["irm1"]) == {"irm1": origin}
    assert b'"origin"' not in own.read_bytes()
    assert load_stage(tmp_path / "theirs", "irm1").spec == SPEC


@pytest.mark.parametrize("text", ["[]", "{", '{"source": "x"}', json.dumps({"licence": 1})])
def test_an_origin_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = save_stage(tmp_path, SPEC, _weights())
    save_file(load_file(path), path, {"origin": text})
    with pytest.raises(UsageError, match=r"irm1\.safetensors names no origin"):
        read_origin(path)
    with pytest.raises(UsageError, match="origin of weights has licence="):
        Origin("SR3", "gen.pth", "", "two\nlines", "")


def test_nan_weights_are_neither_written_nor_loaded(tmp_path: Path) -> None:
    weights = _weights()
    first = next(iter(weights))
    save_stage(tmp_path, SPEC, weights)
    spoilt = {**weights, first: torch.full_like(weights[first], float("nan"))}
    with pytest.raises(FloatingPointError, match="irm1 holds NaN or infinity"):
        save_stage(tmp_path, SPEC, spoilt)
    assert torch.equal(load_file(tmp_path / "irm1.safetensors")[first], weights[first])
    save_file(spoilt, tmp_path / "irm1.safetensors")
    with pytest.raises(UsageError, match=f"irm1.safetensors holds NaN or infinity in {first}"):
        load_stage(tmp_path, "irm1")


def test_a_weight_too_large_for_half_precision_is_not_written(tmp_path: Path) -> None:
    weights = {name: p * 1e9 for name, p in _weights().items()}
    with pytest.raises(FloatingPointError, match=r"as torch\.float16"):
        save_stage(tmp_path, SPEC, weights, torch.float16)


def test_a_folder_without_the_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no irm1\.json"):
        load_stage(tmp_path, "irm1")
    save_stage(tmp_path, SPEC, _weights())
    (tmp_path / "irm1.safetensors").unlink()
    with pytest.raises(UsageError, match=r"irm1\.safetensors cannot be read"):
        load_stage(tmp_path, "irm1")


def test_a_crash_between_weights_and_specification_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights first: then they say what they are, and a specification that says otherwise is refused."""
    save_stage(tmp_path, SPEC, _weights())
    other = replace(SPEC, loss="l2")

    def crash(path: Path, text: str) -> int:
        raise OSError(f"no room for {len(text)} characters in {path}")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", crash)
        with pytest.raises(OSError, match="no room"):
            save_stage(tmp_path, other, _weights())
    assert _steps(tmp_path) == ["irm1.json", "irm1.safetensors"]
    with pytest.raises(
        UsageError,
        match=(
            r"irm1\.safetensors was trained as another irm1 than irm1\.json says: loss: found l2, expected "
            r"l1"
        ),
    ):
        load_stage(tmp_path, "irm1")
    save_stage(tmp_path, other, _weights())
    (tmp_path / "irm1.json").write_text(
        json.dumps(to_dict(replace(other, start=1000)))
    )  # another way to sample is no other stage
    assert load_stage(tmp_path, "irm1").spec.start == 1000


def test_weights_that_do_not_say_what_they_were_trained_as_are_taken(tmp_path: Path) -> None:
    save_stage(tmp_path, SPEC, _weights())
    save_file(_weights(), tmp_path / "irm1.safetensors")
    assert load_stage(tmp_path, "irm1").spec == SPEC


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = save_stage(tmp_path, SPEC, _weights())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"irm1\.safetensors cannot be read"):
        load_stage(tmp_path, "irm1")
    (tmp_path / "irm1.json").write_text("{")
    with pytest.raises(UsageError, match=r"irm1\.json is no JSON"):
        load_stage(tmp_path, "irm1")


def test_another_stage_or_another_specification_is_refused_before_the_weights_are_read(
    tmp_path: Path,
) -> None:
    save_stage(tmp_path, SPEC, _weights()).unlink()
    other = replace(SPEC, schedule=replace(SPEC.schedule, num_steps=4000))
    with pytest.raises(UsageError, match=r"another irm1: schedule\.num_steps: found 2000, expected 4000"):
        load_stage(tmp_path, "irm1", expected=other)
    (tmp_path / "irm2.json").write_bytes((tmp_path / "irm1.json").read_bytes())
    with pytest.raises(UsageError, match=r"irm2\.json describes the stage irm1; expected irm2"):
        load_stage(tmp_path, "irm2")


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (
            replace(SPEC, schedule=replace(SPEC.schedule, beta_1=1e-5)),
            r"schedule\.beta_1: found 1e-06, expected 1e-05",
        ),
        (replace(SPEC, unet=replace(SPEC.unet, image_px=16)), r"unet\.image_px: found 8, expected 16"),
        (
            replace(SPEC, unet=replace(SPEC.unet, channel_multipliers=(1, 4))),
            r"unet\.channel_multipliers: found \[1, 2\], expected \[1, 4\]",
        ),
        (replace(SPEC, loss="l2"), "loss: found l1, expected l2"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_the_field_that_differs_is_named_before_the_weights_are_read(
    tmp_path: Path, other: StageSpec, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_stage(tmp_path, SPEC, _weights())
    monkeypatch.setattr("diffbfr.weights.load_file", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ValueError, match=f"another irm1: {field}"):
        load_stage(tmp_path, "irm1", expected=other)


def test_weights_serve_any_way_of_sampling(tmp_path: Path) -> None:
    save_stage(tmp_path, SPEC, _weights())
    fast = replace(SPEC.fast, num_evaluations=SPEC.fast.num_evaluations + 1)
    other = replace(SPEC, start=SPEC.start - 1, fast=fast, reverse_variance="posterior", reverse_clamp=True)
    assert load_stage(tmp_path, "irm1", expected=other).spec == other
    assert {name for name, value in vars(other).items() if value != getattr(SPEC, name)} == set(SAMPLING)
    assert other.trained == SPEC.trained != replace(SPEC, loss="l2").trained


def test_a_record_from_before_an_option_existed_has_its_default(tmp_path: Path) -> None:
    save_stage(tmp_path, SPEC, _weights())
    values = json.loads((tmp_path / "irm1.json").read_text())
    for option in ("reverse_variance", "reverse_clamp", "resize_kernel"):
        del values[option]
    (tmp_path / "irm1.json").write_text(json.dumps(values))
    assert load_stage(tmp_path, "irm1", expected=SPEC).spec == SPEC


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_weights_of_another_network_are_refused_before_they_are_read(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = _weights()
    if change == "shape":
        weights["head.bias"] = torch.zeros(4)
    elif change == "missing":
        del weights["head.bias"]
    else:
        weights["tail.bias"] = torch.zeros(4)
    save_file(weights, tmp_path / "irm1.safetensors")
    (tmp_path / "irm1.json").write_text(json.dumps(to_dict(SPEC)))
    monkeypatch.setattr("diffbfr.weights.load_file", lambda path: pytest.fail(f"{path} was read"))
    expected = {
        "shape": r"head\.bias of shape \[4\]; expected \[3\]",
        "missing": r"head\.bias of shape None; expected \[3\]",
        "more": r"tail\.bias of shape \[4\]; expected None",
    }
    with pytest.raises(UsageError, match=expected[change]):
        load_stage(tmp_path, "irm1")
