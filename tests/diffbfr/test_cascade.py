"""Algorithm 1 whole: three stages in a row, each face with its own noise, and only what fits together is a
cascade.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffbfr.cascade import (
    Cascade,
    Mode,
    cascade_digest,
    check_triple,
    packaged_cascade,
    sample,
    write_record,
)
from diffbfr.checkpoint import save_stage
from diffbfr.errors import UsageError
from diffbfr.keys import draw_keys, noise_key
from diffbfr.models.denoiser import Denoiser, upsample
from diffbfr.samplers import keyed_noise
from diffbfr.stages import IRM1_TINY, IRM2_TINY, STAGE_NAMES, TEM_TINY, ScheduleSpec, StageName, StageSpec
from tests.diffbfr.tiny import TINY_STAGES, wake

KEYS = ["a/0/0", "b/0/0", "b/1/0"]
SHORT: dict[
    StageName, StageSpec
] = {  # the same networks over a handful of steps, so that the loop of Algorithm 1 can be written out
    "irm1": replace(TINY_STAGES["irm1"], schedule=ScheduleSpec(6, 0.05, 0.5), start=6),
    "irm2": replace(TINY_STAGES["irm2"], schedule=ScheduleSpec(6, 0.05, 0.5), start=4),
    "tem": replace(TINY_STAGES["tem"], schedule=ScheduleSpec(5, 0.02, 0.2), start=3),
}


SMOKE: dict[StageName, StageSpec] = {  # networks as wide as those that ship, walked in two evaluations
    name: replace(spec, fast=replace(spec.fast, num_evaluations=2))
    for name, spec in zip(STAGE_NAMES, (IRM1_TINY, IRM2_TINY, TEM_TINY), strict=True)
}


def _stage(spec: StageSpec, seed: int) -> Denoiser:
    return wake(Denoiser(spec), seed).eval().requires_grad_(False)


def _cascade(stages: dict[StageName, StageSpec] = TINY_STAGES) -> Cascade:
    irm1, irm2, tem = (_stage(stages[name], seed) for seed, name in enumerate(STAGE_NAMES))
    return Cascade(irm1, irm2, tem)


def _faces(n: int = 3, px: int = 8) -> Tensor:
    return torch.rand(n, 3, px, px, generator=torch.Generator().manual_seed(5)) * 2 - 1


def _shortened(spec: StageSpec) -> StageSpec:
    """The same network with a loop of a few steps."""
    start = 6 if spec.name == "irm1" else 3
    fast = replace(spec.fast, num_evaluations=2)
    return replace(spec, schedule=ScheduleSpec(6, 0.05, 0.5), start=start, fast=fast)


def _written_out(stage: Denoiser, start_image: Tensor | None, condition: Tensor | None) -> Tensor:
    """One of the three loops of Algorithm 1, with the tables made here."""
    spec = stage.spec
    beta = torch.linspace(
        spec.schedule.beta_1, spec.schedule.beta_T, spec.schedule.num_steps, dtype=torch.float64
    ).tolist()
    gamma = [math.prod(1 - b for b in beta[: t + 1]) for t in range(len(beta))]
    keyed = keyed_noise(KEYS, spec.name, spec.px)

    def noise(step: int) -> Tensor:
        return keyed(torch.full((3,), step))

    y = noise(spec.start + 1)
    if start_image is not None:
        y = math.sqrt(gamma[spec.start - 1]) * start_image + math.sqrt(1 - gamma[spec.start - 1]) * y
    for t in range(spec.start, 0, -1):
        time = torch.full((3,), math.sqrt(gamma[t - 1]) if spec.name != "tem" else float(t))
        epsilon = stage.net(y if condition is None else torch.cat([condition, y], 1), time)[:, :3]
        y = (y - beta[t - 1] / math.sqrt(1 - gamma[t - 1]) * epsilon) / math.sqrt(1 - beta[t - 1])
        if t > 1:
            y = y + math.sqrt(beta[t - 1]) * noise(t)
    return y


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
    assert (result.irm1.shape, result.irm2.shape, result.tem.shape) == (
        (1, 3, 8, 8),
        (1, 3, 32, 32),
        (1, 3, 32, 32),
    )
    for image in (result.irm1, result.irm2, result.tem):
        assert float(image.abs().max()) <= 1


@pytest.mark.slow
def test_the_same_keys_give_the_same_faces_and_others_do_not() -> None:
    cascade = _cascade()
    first, again = cascade.restore(_faces(), KEYS), cascade.restore(_faces(), KEYS)
    assert torch.equal(first.irm1, again.irm1)
    assert torch.equal(first.tem, again.tem)
    other = cascade.restore(_faces(), ["a/0/1", *KEYS[1:]])
    assert not torch.allclose(other.tem[0], first.tem[0], atol=1e-2)
    assert torch.equal(other.tem[1:], first.tem[1:])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "faithful"])
@pytest.mark.parametrize("stages", [TINY_STAGES, SMOKE], ids=["tiny", "smoke"])
def test_one_face_alone_is_bitwise_the_same_face_in_any_batch(
    stages: dict[StageName, StageSpec], mode: Mode
) -> None:
    cascade = _cascade(
        stages if mode == "fast" else {name: _shortened(spec) for name, spec in stages.items()}
    )
    count = 17 if stages is TINY_STAGES else 5  # 17: more than a vector of the processor holds
    faces, keys = _faces(count, cascade.lq_px), [f"{i}/0/0" for i in range(count)]
    together = cascade.restore(faces, keys, mode)
    for chosen in ([0], [3], [count - 1, 2], [1, 0, 3, 2]):
        some = cascade.restore(faces[chosen], [keys[i] for i in chosen], mode)
        for name in ("irm1", "irm2", "tem"):
            assert torch.equal(getattr(some, name), getattr(together, name)[chosen])


@pytest.mark.slow
def test_the_layout_of_the_faces_in_memory_does_not_change_a_bit() -> None:
    cascade = _cascade(SMOKE)
    faces = _faces(3, cascade.lq_px)
    other = cascade.restore(faces.contiguous(memory_format=torch.channels_last), KEYS)
    assert torch.equal(other.tem, cascade.restore(faces, KEYS).tem)


@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_faces_at_different_steps_share_a_batch_and_are_what_each_would_be_alone(mode: Mode) -> None:
    stage = _stage(SHORT["irm2"], seed=1)
    stage.spec = replace(stage.spec, fast=replace(stage.spec.fast, num_evaluations=2))
    images, starts, seen = _faces(3, 32), [6, 2, 4], []
    stage.net.register_forward_hook(lambda net, inputs, output: seen.append(len(inputs[0])))
    together = sample(stage, KEYS, mode, start_image=images, condition=images, starts=starts)
    assert sum(seen) == (sum(starts) if mode == "faithful" else 2 * 3)
    for i, start in enumerate(starts):
        image = images[i : i + 1]
        assert torch.equal(
            together[i : i + 1],
            sample(stage, KEYS[i : i + 1], mode, start_image=image, condition=image, starts=[start]),
        )
    assert not torch.allclose(
        together, sample(stage, KEYS, mode, start_image=images, condition=images), atol=1e-3
    )


@pytest.mark.slow
def test_the_reverse_variance_and_the_resize_of_the_specification_are_used() -> None:
    expected = _cascade(SHORT).restore(_faces(), KEYS, "faithful")
    for change in (
        {"reverse_variance": "posterior"},
        {"reverse_clamp": True},
        {"resize_kernel": "bilinear"},
        {"resize_clamp": False},
    ):
        found = _cascade({**SHORT, "irm2": replace(SHORT["irm2"], **change)}).restore(
            _faces(), KEYS, "faithful"
        )
        assert torch.equal(found.irm1, expected.irm1)
        assert not torch.allclose(found.irm2, expected.irm2, atol=1e-3)


@pytest.mark.slow
def test_mode_faithful_clamps_only_what_the_specification_says_and_mode_fast_always() -> None:
    clamping = {name: replace(spec, reverse_clamp=True) for name, spec in SHORT.items()}
    free, clamped = (_cascade(stages).restore(_faces(), KEYS, "faithful") for stages in (SHORT, clamping))
    fast = _cascade().restore(_faces(), KEYS)
    for name in STAGE_NAMES:
        assert float(getattr(free, name).abs().max()) > 1 >= float(getattr(clamped, name).abs().max())
        assert float(getattr(fast, name).abs().max()) <= 1


def test_tems_learned_variance_is_sampled_where_it_is_asked_for() -> None:
    """`starts` differ, so that one face waits while the others still hear the network and its range."""
    learned = replace(SHORT["tem"], reverse_variance="learned")
    stage, image, starts = _stage(learned, seed=2), _faces(3, 32), [3, 1, 2]
    together = sample(stage, KEYS, "faithful", start_image=image, condition=None, starts=starts)
    for i, start in enumerate(starts):
        alone = sample(
            stage, KEYS[i : i + 1], "faithful", start_image=image[i : i + 1], condition=None, starts=[start]
        )
        assert torch.equal(together[i : i + 1], alone)
    fixed = sample(
        _stage(SHORT["tem"], seed=2), KEYS, "faithful", start_image=image, condition=None, starts=starts
    )
    assert not torch.allclose(fixed[0], together[0], atol=1e-3)
    assert torch.equal(fixed[1], together[1])  # from step 1 there is no noise to scale


# Several restorations of one face


@pytest.mark.slow
def test_each_draw_is_the_restoration_of_its_key_and_the_spread_is_theirs() -> None:
    cascade = _cascade()
    rows = [draw_keys("a", 3), draw_keys("b", 3)]
    samples = cascade.restore_samples(_faces(2), rows)
    assert samples.draws.shape == (2, 3, 3, 32, 32)
    assert samples.mean.shape == samples.spread.shape == (2, 3, 32, 32)
    for draw in range(3):
        assert torch.equal(
            samples.draws[:, draw],
            cascade.restore(_faces(2), [noise_key("a", draw=draw), noise_key("b", draw=draw)]).tem,
        )
    by_hand = np.std(samples.draws.numpy().astype(np.float64), axis=1, ddof=1)
    assert np.allclose(samples.spread.numpy(), by_hand, atol=1e-6)
    assert np.allclose(samples.mean.numpy(), samples.draws.numpy().mean(1), atol=1e-6)
    assert float(samples.spread.mean()) > 0.01


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([draw_keys("a", 2)], "1 rows of noise keys for 2 faces"),
        (
            [draw_keys("a", 2), draw_keys("b", 3)],
            "the faces have 2 and 3 noise keys; expected one number of draws, at least 2",
        ),
        (
            [draw_keys("a", 1), draw_keys("b", 1)],
            "the faces have 1 noise keys; expected one number of draws, at least 2",
        ),
    ],
)
def test_uneven_or_single_draws_are_refused(rows: list[list[str]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        _cascade().restore_samples(_faces(2), rows)


def test_a_cascade_whose_irm2_sees_the_input_takes_it_at_full_size() -> None:
    """IRM-1 gets it reduced, IRM-2 as it is, beside what IRM-1 made of it."""
    irm2 = TINY_STAGES["irm2"]
    cascade = _cascade({**TINY_STAGES, "irm2": replace(irm2, unet=replace(irm2.unet, in_channels=9))})
    assert (cascade.lq_px, cascade.hq_px) == (32, 32)
    faces = _faces(px=32)
    restored = cascade.restore(faces, KEYS)
    reduced = interpolate(faces, size=8, mode="bilinear", antialias=True)
    assert torch.equal(restored.irm1, _cascade().identity(reduced, KEYS))
    enlarged = upsample(restored.irm1, 32)
    seen = torch.cat([enlarged, faces], 1)
    assert torch.equal(
        restored.irm2, sample(cascade.irm2, KEYS, "fast", start_image=enlarged, condition=seen)
    )
    with pytest.raises(UsageError, match=r"faces are \(3, 8, 8\); expected \(3, 32, 32\)"):
        cascade.restore(_faces(), KEYS)
    with pytest.raises(UsageError, match=r"irm2 was given \(3, 32, 32\); expected \(6, 32, 32\)"):
        sample(cascade.irm2, KEYS, "fast", start_image=faces, condition=faces)
    assert torch.equal(cascade.restore(faces[:1], KEYS[:1]).tem, restored.tem[:1])


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
    with pytest.raises(ValueError, match="irm1 was given no face"):
        cascade.restore(_faces(0), [])
    with pytest.raises(ValueError, match=r"irm2 was given \(3, 8, 8\); expected \(3, 32, 32\)"):
        sample(cascade.irm2, KEYS, "fast", start_image=_faces(), condition=_faces())
    with pytest.raises(ValueError, match="2 noise keys for 3 faces"):
        sample(cascade.irm2, KEYS[:2], "fast", start_image=_faces(3, 32), condition=_faces(3, 32))
    with pytest.raises(ValueError, match="irm2 was given no condition; expected one"):
        sample(cascade.irm2, KEYS, "fast", start_image=_faces(3, 32), condition=None)
    with pytest.raises(ValueError, match="tem was given a condition; expected none"):
        sample(cascade.tem, KEYS, "fast", start_image=_faces(3, 32), condition=_faces(3, 32))
    for start in (0, 2001):
        with pytest.raises(ValueError, match=rf"start={start}; expected a step in 1\.\.2000"):
            sample(
                cascade.irm2,
                KEYS,
                "fast",
                start_image=_faces(3, 32),
                condition=_faces(3, 32),
                starts=[600, start, 600],
            )
    with pytest.raises(ValueError, match="3 evaluations from start=2"):
        sample(
            cascade.irm2,
            KEYS,
            "fast",
            start_image=_faces(3, 32),
            condition=_faces(3, 32),
            starts=[600, 2, 600],
        )


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
        (
            {"irm1": replace(TINY_STAGES["irm1"], start=1500)},
            "irm1 has start=1500; expected a full start, 2000",
        ),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: dict[StageName, StageSpec], match: str
) -> None:
    stages = {**TINY_STAGES, **change}
    with pytest.raises(UsageError, match=match):
        check_triple(stages["irm1"], stages["irm2"], stages["tem"])
    with pytest.raises(UsageError, match=match):
        Cascade(Denoiser(stages["irm1"]), Denoiser(stages["irm2"]), Denoiser(stages["tem"]))


def test_the_packaged_cascade_lies_inside_the_package() -> None:
    assert packaged_cascade().parent.parent.name == "diffbfr"
