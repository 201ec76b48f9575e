# %% [markdown]
# # A training that is killed, and goes on
#
# A stage is trained twice on the same dataset: once without a break, and once in a process that kills
# itself in the middle. The second one continues from its newest checkpoint. At the end both have the same
# weights, bit for bit, because everything random is keyed by the position of a sample in the run, not by
# the process that makes it.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from diffbfr.degradation import PRESETS
from diffbfr.training.loop import train
from pipelines.dataset.samples import ShardConfig
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset, plan_shards, shard

torch.set_num_threads(1)
work = Path(tempfile.mkdtemp(prefix="diffbfr-notebook-"))

# %% [markdown]
# ## A dataset of sixteen faces

# %%
config = ShardConfig(
    hq_px=64,
    lq_px=16,
    variants=2,
    shard_size=8,
    val_fraction=0.0,
    test_fraction=0.0,
    seed=0,
    degradation=PRESETS["paper"],
)
tasks = plan_shards(open_source("synthetic:count=16,seed=0,px=64"), config, str(work / "dataset"))
for task in tasks:
    shard(task)
finish_dataset(str(work / "dataset"), tasks)

# %% [markdown]
# ## A small IRM-1
#
# The names below are written into a module of their own, so that the process that will be killed uses the
# same.

# %%
STEPS, BATCH, KILL_AT = 24, 4, 17

module = work / "small_training.py"
module.write_text(
    f"""
from dataclasses import replace
from pathlib import Path

from diffbfr.stages import IRM1_TINY
from diffbfr.training.config import TrainingConfig
from diffbfr.training.loop import Run
from pipelines.dataset.manifest import open_dataset


def small_run(folder):
    unet = replace(
        IRM1_TINY.unet,
        image_px=16,
        inner_channels=8,
        channel_multipliers=(1, 2),
        res_blocks=(1, 1),
        attention_px=(),
        norm_groups=4,
    )
    training = TrainingConfig(
        num_samples={STEPS * BATCH},
        global_batch={BATCH},
        learning_rate=1e-3,
        warmup_samples=0,
        ema_half_life=16.0,
        checkpoint_samples={4 * BATCH},
    )
    return Run(replace(IRM1_TINY, unet=unet), training, open_dataset({str(work / "dataset")!r}), Path(folder))
"""
)
sys.path.insert(0, str(work))
from small_training import small_run

# %% [markdown]
# ## Without a break

# %%
losses = {"without a break": []}
whole = train(
    small_run(work / "whole"),
    report=lambda metrics: losses["without a break"].append((metrics.step, metrics.loss)),
    report_every_s=0.0,
)
assert whole.steps == STEPS
assert whole.resumed_from == 0

# %% [markdown]
# ## Killed
#
# The process gets SIGKILL after a step in the middle: no handler runs, nothing is flushed.

# %%
killed = subprocess.run(
    [
        sys.executable,
        "-c",
        f"""
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {str(work)!r})
from diffbfr.training.loop import train
from small_training import small_run

def heartbeat(step):
    if step == {KILL_AT}:
        os.kill(os.getpid(), signal.SIGKILL)

train(small_run({str(work / "killed")!r}), heartbeat=heartbeat)
""",
    ]
)
print(f"ended by signal {-killed.returncode}; checkpoints:")
for folder in sorted((work / "killed" / "checkpoints").iterdir()):
    print("  ", folder.name)
assert killed.returncode == -9
assert not (work / "killed" / "irm1.safetensors").exists()

# %% [markdown]
# ## The same call again
#
# It finds the newest complete checkpoint and makes the steps after it. Steps between that checkpoint and
# the kill are made a second time, with the same numbers.

# %%
losses["after the kill"] = []
resumed = train(
    small_run(work / "killed"),
    report=lambda metrics: losses["after the kill"].append((metrics.step, metrics.loss)),
    report_every_s=0.0,
)
print(f"went on from step {resumed.resumed_from} of {resumed.steps}")
assert 0 < resumed.resumed_from <= KILL_AT
assert KILL_AT - resumed.resumed_from < 8, (
    "at most two checkpoints are lost: one that was being written, and the next"
)

# %%
for name, curve in losses.items():
    plt.plot(*zip(*curve, strict=True), marker="o" if "after" in name else "", label=name)
plt.axvline(KILL_AT, linestyle=":", color="gray", label="SIGKILL")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()

after = dict(losses["after the kill"])
before = dict(losses["without a break"])
assert after
assert all(before[step] == loss for step, loss in after.items()), "each step's loss is the same number"

# %% [markdown]
# ## The same weights

# %%
one, other = (load_file(work / name / "irm1.safetensors") for name in ("whole", "killed"))
assert one.keys() == other.keys()
assert all(torch.equal(one[name], other[name]) for name in one)
print(f"{sum(tensor.numel() for tensor in one.values()):,} weights are equal, bit for bit")
