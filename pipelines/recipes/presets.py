"""The recipes by name: `smoke`, `tiny`, `small`, `faces128`, `paper`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from diffbfr.stages import IRM1, IRM1_TINY, IRM2, IRM2_TINY, PACKAGED, TEM, TEM_TINY, SamplerSpec
from diffbfr.training.config import TrainingConfig
from pipelines.cluster import ClusterConfig
from pipelines.recipes.recipe import (
    SCRATCH,
    DataConfig,
    EvaluateConfig,
    Recipe,
    SamplingConfig,
    StageConfig,
)


def smoke() -> Recipe:
    """Minutes on two cores: 128 px procedural faces, a few hundred steps from the packaged cascade."""
    return Recipe(
        name="smoke",
        init=PACKAGED,
        data=DataConfig(
            faces="synthetic:count=320,seed=0,px=128", hq_px=128, lq_px=32, shard_size=64, test_fraction=0.1
        ),
        irm1=StageConfig(IRM1_TINY, _training(2400, global_batch=8, learning_rate=5e-5)),
        irm2=StageConfig(IRM2_TINY, _training(1600, global_batch=8, learning_rate=5e-5, t_max=720)),
        tem=StageConfig(TEM_TINY, _training(1600, global_batch=8, learning_rate=5e-5, t_max=36)),
    )


def tiny() -> Recipe:
    """An hour on two cores: the packaged small cascade, trained from scratch on procedural faces."""
    return Recipe(
        name="tiny",
        init=SCRATCH,
        data=DataConfig(
            faces="synthetic:count=4400,seed=1000000,px=128",
            hq_px=128,
            lq_px=32,
            val_fraction=0.03,
            test_fraction=0.03,
        ),
        irm1=StageConfig(IRM1_TINY, _training(100_000)),
        irm2=StageConfig(IRM2_TINY, _training(120_000, t_max=720)),
        tem=StageConfig(TEM_TINY, _training(60_000, t_max=36)),
        evaluate=EvaluateConfig(seeds=(0, 1, 2)),
    )


def small() -> Recipe:
    """An hour and a half on two cores, minutes on a GPU: 256 px faces, stages of 1-2 million parameters.

    Give real faces with --faces. TEM starts where the noise hides as much of a 256 px image as N_2 = 100 does
    at 512 px. IRM-2 and TEM are trained on patches in half of their steps: at equal time they train better
    than on whole images alone (`docs/results.md`).
    """
    irm1 = replace(IRM1_TINY.unet, image_px=64, channel_multipliers=(1, 2, 3, 4), res_blocks=(1, 1, 1, 1))
    irm2 = replace(
        IRM2_TINY.unet, image_px=256, channel_multipliers=(1, 1, 2, 2, 3), res_blocks=(1, 1, 1, 1, 1)
    )
    tem = replace(TEM_TINY.unet, image_px=256, channel_multipliers=(1, 1, 1, 1), res_blocks=(1, 1, 1, 1))
    return Recipe(
        name="small",
        init=SCRATCH,
        data=DataConfig(faces="synthetic:count=6000,seed=0,px=256", hq_px=256, lq_px=64),
        irm1=StageConfig(replace(IRM1_TINY, unet=irm1), _training(64_000)),
        irm2=StageConfig(replace(IRM2_TINY, unet=irm2), replace(_training(56_000, t_max=720), patch_px=128)),
        tem=StageConfig(
            replace(TEM_TINY, unet=tem, start=50), replace(_training(32_000, t_max=60), patch_px=128)
        ),
        evaluate=EvaluateConfig(max_faces=200),
    )


def faces128() -> Recipe:
    """Two hours of one core: 128 px cascade for real faces, 5.8 million parameters in three stages.

    Give photos with --faces, and data.align=true where they are whole ones. The weights of all stages have at
    most 12 MB in float16. Channels are added where maps are small, because there they cost memory rather than
    time: IRM-2 has 2.3 times the parameters of `tiny`'s and takes 1.2 times as long. Ten thousand faces are
    seen ten times each, so nothing is dropped out. IRM-1 is sampled with four evaluations, of which the last
    sees a signal of 2.7 times the noise: more draw sharper faces of 32 px that are farther from the person's,
    and make the column slower. The last of IRM-2's four sees one of five times the noise: nearer to the end a
    network of this size leaves noise in plain backgrounds, and FID and identity get worse (`docs/results.md`,
    "Samplers"). TEM starts low for the same reason. IRM-2 sees the input beside the output of IRM-1: nearly
    half of the inputs of Eq. 13 hold more than 32 px do, and with it the person's identity. TEM continues
    from the packaged one.
    """
    irm1 = replace(
        IRM1_TINY.unet,
        inner_channels=32,
        channel_multipliers=(1, 2, 3),
        res_blocks=(1, 2, 2),
        dropout=0.0,
    )
    irm2 = replace(IRM2_TINY.unet, in_channels=9, channel_multipliers=(1, 1, 2, 4))
    return Recipe(
        name="faces128",
        init=SCRATCH,
        data=DataConfig(
            faces="synthetic:count=10000,seed=0,px=128",
            hq_px=128,
            lq_px=32,
            variants=2,
            val_fraction=0.02,
            test_fraction=0.02,
        ),
        irm1=StageConfig(
            replace(IRM1_TINY, unet=irm1, fast=SamplerSpec("ddim", 4, 1.0)),
            replace(_training(96_000), ema_half_life=12_000.0, average_samples=40_000),
        ),
        irm2=StageConfig(
            replace(IRM2_TINY, unet=irm2, fast=SamplerSpec("sde_dpmpp_2m", 4, 1.6)),
            replace(_patches(80_000, t_max=720), condition="both", average_samples=10_000),
        ),
        tem=StageConfig(
            replace(TEM_TINY, start=8, fast=SamplerSpec("ddim", 2, 4.0)),
            replace(_patches(48_000, t_max=36), ema_half_life=4_800.0, average_samples=16_000),
            PACKAGED,
        ),
        evaluate=EvaluateConfig(max_faces=200),
    )


def _patches(num_samples: int, t_max: int) -> TrainingConfig:
    """Training on crops of 64 px in three of four steps."""
    return replace(_training(num_samples, t_max=t_max), patch_px=64, patch_full_share=0.25)


def _training(
    num_samples: int, *, global_batch: int = 16, learning_rate: float = 1e-3, t_max: int | None = None
) -> TrainingConfig:
    """Training of the small stages: a short warm-up, and a learning rate that decays over the second half.

    t is restricted to the range that the sampler uses (1.2 times the start), because a small network needs
    all of its samples there.
    """
    return TrainingConfig(
        num_samples=num_samples,
        global_batch=global_batch,
        learning_rate=learning_rate,
        warmup_samples=min(2_000, num_samples // 8),
        decay_samples=num_samples // 2,
        ema_half_life=min(4_000.0, num_samples / 8),
        t_max=t_max,
        max_gradient_norm=1.0,
        checkpoint_samples=min(4_000, num_samples // 2),
    )


def paper() -> Recipe:
    """Table 6 at 512 px; give FFHQ's `images1024x1024` with --faces.

    The paper states neither the number of iterations nor the optimisers. Those of the two families that Table
    6 shows are used: Adam for the SR3 stages over SR3's million steps, without an average of the weights;
    AdamW without decay and with an EMA of 0.999 for TEM, over half a million steps. `diffbfr/README.md` lists
    both as unstated in the paper.
    """
    return Recipe(
        name="paper",
        init=SCRATCH,
        data=DataConfig(
            faces="synthetic:count=70000,seed=0,px=512",
            hq_px=512,
            lq_px=128,
            variants=8,
            val_fraction=0.01,
            test_fraction=0.01,
        ),
        irm1=StageConfig(
            IRM1,
            TrainingConfig(num_samples=4_000_000, global_batch=4, learning_rate=1e-4, ema_half_life=None),
        ),
        irm2=StageConfig(
            IRM2,
            TrainingConfig(num_samples=4_000_000, global_batch=4, learning_rate=3e-6, ema_half_life=None),
        ),
        tem=StageConfig(
            TEM,
            TrainingConfig(
                num_samples=32_000_000,
                global_batch=64,
                learning_rate=1e-4,
                optimizer="adamw",
                ema_half_life=44_339.0,
                checkpoint_samples=640_000,
            ),
        ),
        sampling=SamplingConfig("faithful"),
        evaluate=EvaluateConfig(batch=4),
        cluster=ClusterConfig(num_workers=2),
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = MappingProxyType(
    {"smoke": smoke, "tiny": tiny, "small": small, "faces128": faces128, "paper": paper}
)
