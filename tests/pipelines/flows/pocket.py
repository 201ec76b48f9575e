"""A whole run that fits into seconds: 32 px faces, an 8 px low stage, networks of a few thousand
parameters, in this process.
"""

from dataclasses import replace

from diffbfr.degradation import DegradationSpec
from diffbfr.stages import IRM1, IRM2, TEM, SamplerSpec
from diffbfr.training.config import TrainingConfig
from diffbfr.unet_spec import UNetSpec
from pipelines.cluster import ClusterConfig
from pipelines.flows import train_cascade
from pipelines.recipes.recipe import SCRATCH, DataConfig, EvaluateConfig, Recipe, RestoreConfig, StageConfig

STEPS = (
    "shard",
    "train-irm1",
    "train-tem",
    "condition-irm1",
    "train-irm2",
    "cascade",
    "evaluate",
    "register",
    "restore",
)
"""Of its run, in their order."""


def pocket(num_workers: int = 0, num_samples: int = 32) -> Recipe:
    """The recipe; every step does its real work."""

    def unet(px: int, channels_in: int, channels_out: int) -> UNetSpec:
        return UNetSpec(px, channels_in, channels_out, 8, (1, 2), (1, 1), (4,), norm_groups=4)

    training = TrainingConfig(
        num_samples=num_samples, global_batch=4, learning_rate=1e-3, checkpoint_samples=8
    )
    return Recipe(
        name="pocket",
        init=SCRATCH,
        data=DataConfig(
            faces="synthetic:count=24,seed=3,px=32",
            hq_px=32,
            lq_px=8,
            variants=1,
            shard_size=6,
            val_fraction=0.0,
            test_fraction=0.25,
            degradation=replace(DegradationSpec(), r=(0.8, 3.0)),  # restore refuses photos under 8 px
        ),
        irm1=StageConfig(replace(IRM1, unet=unet(8, 6, 3), fast=SamplerSpec("dpmpp_2m", 4)), training),
        irm2=StageConfig(replace(IRM2, unet=unet(32, 6, 3), fast=SamplerSpec("dpmpp_2m", 3)), training),
        tem=StageConfig(
            replace(
                TEM,
                unet=replace(unet(32, 3, 6), time="step", scale_shift=True),
                fast=SamplerSpec("sde_dpmpp_2m", 2),
            ),
            training,
        ),
        evaluate=EvaluateConfig(num_panels=2),
        restore=RestoreConfig(num_photos=3),
        cluster=ClusterConfig(num_workers=num_workers),
    )


def run_pocket(root: str, num_samples: int) -> None:
    """The run below a root; what a process of its own is started with."""
    train_cascade.run(pocket(num_samples=num_samples), root)
