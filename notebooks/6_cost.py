# %% [markdown]
# # From a recipe to GPU-hours and money
#
# The operations of each stage are counted on the network itself, without running it. A device, its price
# and the share of its peak that is reached turn them into hours and dollars: those are yours to put in.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffbfr.cost.flops import evaluation_flops, num_parameters
from diffbfr.models.unet import UNet
from diffbfr.stages import STAGE_NAMES
from pipelines.experiments.costs import (
    H100_BF16,
    S3Prices,
    archive_load,
    face_flops,
    restore_cost,
    training_costs,
)
from pipelines.recipes.presets import paper, small, smoke

# %% [markdown]
# ## Counted, and run
#
# The count agrees with what a network really does on this machine, where torch counts every product but those
# of the CPU's attention kernel.

# %%
unet = smoke().irm1.stage.unet
network = UNet(unet)
with torch.no_grad(), FlopCounterMode(display=False) as counter:
    network(torch.zeros(1, unet.in_channels, unet.image_px, unet.image_px), torch.zeros(1))
print(f"counted {evaluation_flops(unet, folded=True):,}, run {counter.get_total_flops():,}")
assert 0.97 < counter.get_total_flops() / evaluation_flops(unet, folded=True) <= 1
assert num_parameters(unet) == sum(parameter.numel() for parameter in network.parameters())

# %% [markdown]
# ## The paper's recipe on a GPU
#
# `H100_BF16` holds the peak of the data sheet, a share that is assumed, and a price.

# %%
gpu = H100_BF16
print(f"{gpu.name}: {gpu.peak_flops / 1e12:.0f} TFLOP/s, {gpu.utilisation:.0%} of it used")
print(f"{gpu.usd_per_hour} USD an hour\n")
print(f"{'stage':6} {'samples':>12} {'GFLOP/img':>10} {'GPU-hours':>10} {'USD':>8}")
costs = training_costs(paper(), gpu)
for name in STAGE_NAMES:
    stage = paper().stage(name)
    giga = evaluation_flops(stage.stage.unet) / 1e9
    hours, dollars = costs[name].gpu_hours, costs[name].usd
    print(f"{name:6} {stage.training.num_samples:12,} {giga:10.0f} {hours:10.0f} {dollars:8.0f}")
training = sum(cost.gpu_hours for cost in costs.values())
print(f"all three: {training:,.0f} GPU-hours, {training * gpu.usd_per_hour:,.0f} USD")
print(f"on 8 GPUs {training / 8 / 24:.1f} days")

assert costs["irm2"].flops > costs["irm1"].flops, "the same network at 16 times the pixels"
half = replace(gpu, utilisation=gpu.utilisation / 2)
assert training_costs(paper(), half)["tem"].gpu_hours == 2 * costs["tem"].gpu_hours

# %% [markdown]
# ## Restoring faces
#
# The few-step solvers against Algorithm 1 step by step: the evaluations of each stage are what counts.

# %%
modes = {mode: face_flops(paper(), mode) for mode in ("fast", "faithful")}
for mode, flops in modes.items():
    seconds = flops / (gpu.flops_per_hour / 3600)
    million = restore_cost(paper(), 1e6, gpu, mode)
    print(f"{mode:9} {flops / 1e12:8.1f} TFLOP a face, {seconds:7.2f} s; a million {million.usd:10,.0f} USD")
assert modes["faithful"] > 50 * modes["fast"]

# %% [markdown]
# ## An archive of ten million photos
#
# What the object store sees at a given rate, and what its requests cost beside the GPUs.

# %%
PHOTOS, FACES_PER_PHOTO, GPUS = 10_000_000, 1.5, 64
cost = restore_cost(paper(), PHOTOS * FACES_PER_PHOTO, gpu, "fast")
hours = cost.gpu_hours / GPUS
load = archive_load(PHOTOS, PHOTOS / hours / 3600, unit_size=16, prices=S3Prices())
print(f"{GPUS} GPUs: {hours:,.0f} hours, {cost.usd:,.0f} USD; {PHOTOS / hours / 3600:,.1f} photos/s")
print(f"{load.requests_per_s:,.0f} requests/s, {load.usd:,.0f} USD for requests")
print(f"journal {load.journal_bytes / 1e9:.0f} GB")
assert load.units == PHOTOS / 16
assert load.usd < cost.usd / 10, "requests are not what an archive costs"

# %% [markdown]
# ## What a smaller model would cost

# %%
recipes = {recipe.name: recipe for recipe in (smoke(), small(), paper())}
dollars = {name: restore_cost(recipe, 1e6, gpu, "fast").usd for name, recipe in recipes.items()}
plt.bar(list(dollars), list(dollars.values()))
plt.yscale("log")
plt.ylabel("USD for a million faces, fast")
plt.show()
assert dollars["smoke"] < dollars["small"] < dollars["paper"]
