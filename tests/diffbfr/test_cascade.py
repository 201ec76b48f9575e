"""Algorithm 1 whole: three stages in a row, each face with its own noise, and only what fits together is a cascade."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffbfr.cascade import Cascade, Mode, cascade_digest, check_triple, packaged_cascade, sample, write_record
from diffbfr.checkpoint import save_stage
from diffbfr.denoiser import Denoiser, upsample
from diffbfr.errors import UsageError
from diffbfr.samplers import keyed_noise
from diffbfr.stages import STAGE_NAMES, ScheduleSpec, StageName, StageSpec
from tests.diffbfr.tiny import TINY_STAGES, wake

KEYS = ["a/0/0", "b/0/0", "b/1/0"]
SHORT: dict[StageName, StageSpec] = {  # the same networks over a handful of steps, so that the loop of Algorithm 1 can be written out
    "irm1": replace(TINY_STAGES["irm1"], schedule=ScheduleSpec(6, 0.05, 0.5), start=6),
    "irm2": replace(TINY_STAGES["irm2"], schedule=ScheduleSpec(6, 0.05, 0.5), start=4),
    "tem": replace(TINY_STAGES["tem"], schedule=ScheduleSpec(5, 0.02, 0.2), start=3),
}


def _stage(spec: StageSpec, seed: int) -> Denoiser:
    return wake(Denoiser(spec), seed).eval().requires_grad_(False)


def _cascade(stages: dict[StageName, StageSpec] = TINY_STAGES) -> Cascade:
    irm1, irm2, tem = (_stage(stages[name], seed) for seed, name in enumerate(STAGE_NAMES))
    return Cascade(irm1, irm2, tem)


def _faces(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def _written_out(stage: Denoiser, start_image: Tensor | None, condition: Tensor | None) -> Tensor:
    """One of the three loops of Algorithm 1, with the tables made here."""
    spec = stage.spec
    beta = torch.linspace(spec.schedule.beta_1, spec.schedule.beta_T, spec.schedule.num_steps, dtype=torch.float64).tolist()
    gamma = [math.prod(1 - b for b in beta[: t + 1]) for t in range(len(beta))]
    noise = keyed_noise(KEYS, spec.name, spec.px)
    y = noise(spec.start + 1)
    if start_image is not None:
        y = math.sqrt(gamma[spec.start - 1]) * start_image + math.sqrt(1 - gamma[spec.start - 1]) * y
    for t in range(spec.start, 0, -1):
        time = torch.full((3,), math.sqrt(gamma[t - 1]) if spec.name != "tem" else float(t))
        epsilon = stage.net(y if condition is None else torch.cat([condition, y], 1), time)[:, :3]
        y = (y - beta[t - 1] / math.sqrt(1 - gamma[t - 1]) * epsilon) / math.sqrt(1 - beta[t - 1])
        if t > 1:
            y = y + math.sqrt(beta[t - 1]) * noise(t)
    return y.clamp(-1, 1)


def test_mode_faithful_is_algorithm_1_written_out() -> None:
    cascade = _cascade(SHORT)
    result = cascade.restore(_faces(), KEYS, "faithful")
    low = _written_out(cascade.irm1, None, _faces())
    assert torch.allclose(result.irm1, low, atol=1e-4)
    enlarged = upsample(result.irm1, 32)
    assert torch.allclose(result.irm2, _written_out(cascade.irm2, enlarged, enlarged), atol=1e-4)
    assert torch.allclose(result.tem, _written_out(cascade.tem, result.irm2, None), atol=1e-4)
    assert float(low.std()) > 0.1


def test_mode_fast_takes_as_many_evaluations_as_each_stage_says() -> None:
    cascade = _cascade()
    calls = dict.fromkeys(STAGE_NAMES, 0)

    def count(stage: Denoiser) -> None:
        def hook(*_: object) -> None:
            calls[stage.spec.name] += 1

        stage.net.register_forward_hook(hook)

    for stage in (cascade.irm1, cascade.irm2, cascade.tem):
        count(stage)
    result = cascade.restore(_faces(1), KEYS[:1])
    assert calls == {"irm1": 4, "irm2": 3, "tem": 3}
    assert (cascade.lq_px, cascade.hq_px) == (8, 32)
    assert (result.irm1.shape, result.irm2.shape, result.tem.shape) == ((1, 3, 8, 8), (1, 3, 32, 32), (1, 3, 32, 32))
    for image in (result.irm1, result.irm2, result.tem):
        assert float(image.abs().max()) <= 1


def test_the_same_keys_give_the_same_faces_and_others_do_not() -> None:
    cascade = _cascade()
    first, again = cascade.restore(_faces(), KEYS), cascade.restore(_faces(), KEYS)
    assert torch.equal(first.irm1, again.irm1)
    assert torch.equal(first.tem, again.tem)
    other = cascade.restore(_faces(), ["a/0/1", *KEYS[1:]])
    assert not torch.allclose(other.tem[0], first.tem[0], atol=1e-2)
    assert torch.equal(other.tem[1:], first.tem[1:])


@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_one_face_alone_is_the_same_face_in_a_batch_to_a_hundredth_of_a_level(mode: Mode) -> None:
    """Noise is bitwise equal; the rest is float32's, whose sums the CPU's kernels order by the size of the batch."""
    cascade = _cascade(TINY_STAGES if mode == "fast" else SHORT)
    together = cascade.restore(_faces(), KEYS, mode)
    for i in range(3):
        alone = cascade.restore(_faces()[i : i + 1], KEYS[i : i + 1], mode)
        for name in ("irm1", "irm2", "tem"):
            difference = (getattr(alone, name)[0] - getattr(together, name)[i]).abs().max()
            assert float(difference) * 127.5 < 0.01


def test_one_stage_can_be_run_alone() -> None:
    cascade = _cascade()
    whole = cascade.restore(_faces(), KEYS)
    assert torch.equal(cascade.identity(_faces(), KEYS), whole.irm1)
    assert torch.equal(sample(cascade.tem, KEYS, "fast", start_image=whole.irm2, condition=None), whole.tem)


def test_faces_without_a_key_or_of_another_size_are_refused() -> None:
    cascade = _cascade()
    with pytest.raises(ValueError, match="2 noise keys for 3 faces"):
        cascade.restore(_faces(), KEYS[:2])
    with pytest.raises(ValueError, match=r"faces are \(3, 16, 16\); expected \(3, 8, 8\)"):
        cascade.restore(torch.zeros(3, 3, 16, 16), KEYS)


# Folders


def _write(folder: Path, stages: dict[StageName, StageSpec] = TINY_STAGES) -> Path:
    for seed, name in enumerate(STAGE_NAMES):
        stage = _stage(stages[name], seed)
        save_stage(folder, stage.spec, {key: p.detach() for key, p in stage.net.named_parameters()})
    write_record(folder, {"made_by": "a test"})
    return folder


def test_a_folder_restores_as_the_cascade_that_it_was_written_from(tmp_path: Path) -> None:
    loaded = Cascade.load(_write(tmp_path))
    assert loaded.digest == cascade_digest(tmp_path)
    assert json.loads((tmp_path / "cascade.json").read_text()) == {"made_by": "a test"}
    found, expected = loaded.restore(_faces(), KEYS), _cascade().restore(_faces(), KEYS)
    assert torch.allclose(found.tem, expected.tem, atol=1e-4)


def test_the_digest_is_of_specifications_and_weights_and_not_of_the_record(tmp_path: Path) -> None:
    digest = cascade_digest(_write(tmp_path / "a"))
    assert cascade_digest(_write(tmp_path / "b")) == digest
    write_record(tmp_path / "b", {"made_by": "another test"})
    assert cascade_digest(tmp_path / "b") == digest
    other = _stage(TINY_STAGES["tem"], seed=9)
    save_stage(tmp_path / "b", other.spec, {key: p.detach() for key, p in other.net.named_parameters()})
    assert cascade_digest(tmp_path / "b") != digest
    sampled_otherwise = {**TINY_STAGES, "irm2": replace(TINY_STAGES["irm2"], start=600)}
    assert cascade_digest(_write(tmp_path / "c", sampled_otherwise)) != digest


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no cascade\.json; expected a cascade folder"):
        Cascade.load(tmp_path)
    _write(tmp_path)
    (tmp_path / "irm2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"holds no irm2\.safetensors"):
        Cascade.load(tmp_path)
    (tmp_path / "irm2.json").unlink()
    with pytest.raises(UsageError, match=r"holds no irm2\.json"):
        Cascade.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tem": TINY_STAGES["irm2"]}, "a irm2 in the place of tem"),
        (
            {"tem": replace(TINY_STAGES["tem"], unet=replace(TINY_STAGES["tem"].unet, image_px=64))},
            "irm2 makes 32 px and tem works at 64 px",
        ),
        (
            {"irm1": replace(TINY_STAGES["irm1"], unet=replace(TINY_STAGES["irm1"].unet, image_px=12))},
            "from irm1's 12 px; expected a whole",
        ),
        ({"irm1": replace(TINY_STAGES["irm1"], start=1500)}, "irm1 has start=1500; expected a full start, 2000"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(tmp_path: Path, change: dict[StageName, StageSpec], match: str) -> None:
    stages = {**TINY_STAGES, **change}
    with pytest.raises(UsageError, match=match):
        check_triple(stages["irm1"], stages["irm2"], stages["tem"])
    with pytest.raises(UsageError, match=match):
        Cascade(Denoiser(stages["irm1"]), Denoiser(stages["irm2"]), Denoiser(stages["tem"]))


def test_the_packaged_cascade_lies_inside_the_package() -> None:
    assert packaged_cascade().parent.parent.name == "diffbfr"
