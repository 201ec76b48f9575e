"""Min-SNR counts every level's error of y_0 by min(SNR, gamma), whatever the network says."""

from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Literal

import pytest
import torch

from diffbfr.models.denoiser import Denoiser
from diffbfr.shards import ShardedDataset
from diffbfr.stages import LossKind, StageName
from diffbfr.training.batches import Batch, PositionLoader
from diffbfr.training.config import TrainingConfig
from diffbfr.training.objective import min_snr_weight, stage_loss
from tests.diffbfr.tiny import COLUMN, TINY_STAGES, wake

PREDICTS = pytest.mark.parametrize("predicts", ["noise", "velocity"])
LOSS = pytest.mark.parametrize("loss", ["l1", "l2"])


def _denoiser(
    predicts: Literal["noise", "velocity"], loss: LossKind = "l2", prior_std: float = 0.2
) -> Denoiser:
    unet = replace(TINY_STAGES["irm2"].unet, time="step")
    return wake(
        Denoiser(replace(TINY_STAGES["irm2"], predicts=predicts, loss=loss, prior_std=prior_std, unet=unet))
    ).double()


@pytest.mark.parametrize("first_step", [1, 0])
def test_a_training_hears_the_steps_as_the_sampler_does(first_step: int) -> None:
    tem = TINY_STAGES["tem"]
    denoiser = Denoiser(replace(tem, unet=replace(tem.unet, first_step=first_step)))
    heard: list[torch.Tensor] = []
    denoiser.net.register_forward_pre_hook(lambda net, inputs: heard.append(inputs[1]))
    t = torch.tensor([1, 700])
    images = torch.zeros(2, 3, tem.px, tem.px)
    stage_loss(denoiser, denoiser, Batch(images, None, images, t, torch.zeros(2), torch.zeros(2).long()))
    assert heard[0].tolist() == [first_step, 699 + first_step]


@PREDICTS
@LOSS
def test_the_weighted_error_of_the_output_is_min_snr_times_that_of_the_image(
    predicts: Literal["noise", "velocity"], loss: LossKind
) -> None:
    denoiser = _denoiser(predicts, loss)
    scale = denoiser.spec.prior_std if predicts == "velocity" else 1.0
    generator = torch.Generator().manual_seed(0)
    y_0, mean, noise, output = (
        torch.randn(9, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    level = denoiser.schedule.gamma.sqrt()[torch.tensor([1, 5, 20, 100, 300, 600, 900, 1500, 2000])].view(
        -1, 1, 1, 1
    )
    y_t = level * y_0 + (1 - level.square()).sqrt() * noise
    epsilon = denoiser.noise_of(output, y_t, level, mean)
    in_image = ((y_t - (1 - level.square()).sqrt() * epsilon) / level - y_0) / scale
    of_output = output - denoiser.target(y_0, noise, level, mean)

    snr = (level.square() * scale**2 / (1 - level.square())).flatten()
    weight = min_snr_weight(denoiser.own_level(level).flatten(), 5.0, denoiser.spec)
    power = 2 if loss == "l2" else 1
    expected = snr.clamp_max(5.0) ** (power / 2) * in_image.abs().pow(power).flatten(1).mean(1)
    torch.testing.assert_close(
        weight * of_output.abs().pow(power).flatten(1).mean(1), expected, rtol=1e-6, atol=0
    )


def test_the_weights_are_those_of_the_paper_for_gamma_5() -> None:
    level = torch.tensor([0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    snr = level**2 / (1 - level**2)
    noise, velocity = (_denoiser(predicts).spec for predicts in ("noise", "velocity"))  # type: ignore[arg-type]
    torch.testing.assert_close(min_snr_weight(level, 5.0, noise), snr.clamp_max(5) / snr)
    torch.testing.assert_close(min_snr_weight(level, 5.0, velocity), snr.clamp_max(5) / (snr + 1))


@PREDICTS
def test_the_weights_are_finite_at_both_ends(predicts: Literal["noise", "velocity"]) -> None:
    weights = min_snr_weight(torch.tensor([1e-9, 1.0], dtype=torch.float64), 5.0, _denoiser(predicts).spec)
    assert bool(torch.isfinite(weights).all())
    assert float(weights[1]) == 0


@PREDICTS
def test_the_loss_is_the_weighted_mean_and_a_huge_gamma_leaves_the_noise_alone(
    tiny_dataset: ShardedDataset, predicts: Literal["noise", "velocity"]
) -> None:
    denoiser = _denoiser(predicts, "l1").float()
    loader = PositionLoader(
        tiny_dataset, denoiser.spec, TrainingConfig(num_samples=9, global_batch=1, learning_rate=1.0), COLUMN
    )
    with closing(loader.batches()) as endless:
        batches = list(islice(endless, 5))
    total = 0.0
    for batch in batches:
        level = denoiser.own_level(denoiser.schedule.gamma.sqrt()[batch.t].view(-1, 1, 1, 1)).flatten()
        total += (
            float(min_snr_weight(level, 5.0, denoiser.spec))
            * stage_loss(denoiser, denoiser, batch).item()
            / 5
        )
    config = replace(loader.config, global_batch=5)
    together = next(PositionLoader(tiny_dataset, denoiser.spec, config, COLUMN).batches())
    assert stage_loss(denoiser, denoiser, together, 5.0).item() == pytest.approx(total, rel=1e-5)
    if predicts == "noise":
        assert stage_loss(denoiser, denoiser, together, 1e12).item() == pytest.approx(
            stage_loss(denoiser, denoiser, together).item()
        )


@pytest.mark.parametrize("name", ["irm1", "irm2", "tem"])
def test_what_lies_outside_of_the_photo_teaches_nothing(
    tiny_dataset: ShardedDataset, name: StageName
) -> None:
    stage = TINY_STAGES[name]
    config = TrainingConfig(num_samples=16, global_batch=4, learning_rate=1e-3, seed=2)
    column = COLUMN if name == "irm2" else None
    with closing(PositionLoader(tiny_dataset, stage, config, column).batches()) as batches:
        batch = next(batches)
    assert batch.valid is None
    denoiser = wake(Denoiser(stage))
    whole = stage_loss(denoiser, denoiser, batch)
    everywhere = torch.ones(4, 1, stage.px, stage.px)
    assert torch.equal(stage_loss(denoiser, denoiser, replace(batch, valid=everywhere)), whole)
    left = everywhere.clone()
    left[..., stage.px // 2 :] = 0
    halves = [stage_loss(denoiser, denoiser, replace(batch, valid=part)) for part in (left, 1 - left)]
    torch.testing.assert_close(halves[0] + halves[1], whole)
    nothing = stage_loss(denoiser, denoiser, replace(batch, valid=torch.zeros_like(left)))
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in denoiser.net.parameters())
