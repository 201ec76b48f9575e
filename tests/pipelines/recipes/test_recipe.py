"""The recipes are complete and fit together; `paper` is Table 6."""

import dataclasses
import math
import pickle

import pytest

from diffbfr.errors import UsageError
from diffbfr.spec import to_dict
from diffbfr.stages import IRM1, IRM2, STAGE_NAMES, TEM
from pipelines.recipes.overrides import load
from pipelines.recipes.presets import RECIPES
from pipelines.recipes.recipe import Recipe
from pipelines.sources import open_source


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[str(request.param)]()


def test_every_recipe_knows_its_name_and_travels(recipe: Recipe) -> None:
    assert RECIPES[recipe.name]() == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert to_dict(recipe)["data"]["faces"] == recipe.data.faces


def test_every_recipe_runs_without_any_photos_of_the_users(recipe: Recipe) -> None:
    assert open_source(recipe.data.faces).uri.startswith("synthetic:")


def test_every_recipe_trains_whole_batches_and_seals_several_checkpoints(recipe: Recipe) -> None:
    for name in STAGE_NAMES:
        training = recipe.stage(name).training
        assert training.num_samples % training.global_batch == 0
        assert training.global_batch % max(1, recipe.cluster.num_workers) == 0
        assert 2 * training.checkpoint_samples <= training.num_samples


def test_every_recipe_chains_a_quarter_of_the_size(recipe: Recipe) -> None:
    assert recipe.data.hq_px == 4 * recipe.data.lq_px == recipe.irm2.stage.px == recipe.tem.stage.px
    assert recipe.data.lq_px == recipe.irm1.stage.px
    assert (recipe.data.shard_config.hq_px, recipe.data.shard_config.variants) == (
        recipe.data.hq_px,
        recipe.data.variants,
    )


def test_the_sizes() -> None:
    assert {name: (make().data.hq_px, make().data.lq_px) for name, make in RECIPES.items()} == {
        "smoke": (128, 32),
        "tiny": (128, 32),
        "small": (256, 64),
        "faces128": (128, 32),
        "paper": (512, 128),
    }


def test_paper_is_table_6() -> None:
    paper = RECIPES["paper"]()
    assert (paper.irm1.stage, paper.irm2.stage, paper.tem.stage) == (IRM1, IRM2, TEM)
    assert [paper.stage(name).training.learning_rate for name in STAGE_NAMES] == [1e-4, 3e-6, 1e-4]
    assert [paper.stage(name).training.global_batch for name in STAGE_NAMES] == [4, 4, 64]
    assert [paper.stage(name).training.t_max for name in STAGE_NAMES] == [None, None, None]
    for training in (paper.stage(name).training for name in STAGE_NAMES):
        assert (training.min_snr_gamma, training.patch_px, training.ema_lengths) == (None, None, ())
        assert (training.warmup_samples, training.decay_samples, training.max_gradient_norm) == (0, 0, None)
    assert paper.sampling.mode == "faithful"


def test_paper_trains_each_stage_as_its_family_does() -> None:
    paper = RECIPES["paper"]()
    assert [paper.stage(name).training.optimizer for name in STAGE_NAMES] == ["adam", "adam", "adamw"]
    assert [paper.stage(name).training.weight_decay for name in STAGE_NAMES] == [0, 0, 0]
    assert [paper.stage(name).training.ema_half_life for name in STAGE_NAMES[:2]] == [None, None]
    half_life = paper.tem.training.ema_half_life
    assert half_life is not None
    assert math.isclose(0.5 ** (paper.tem.training.global_batch / half_life), 0.999, abs_tol=1e-6)


def test_patches_that_a_stage_cannot_take_are_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="irm2 has patch_px=100; expected a multiple of 64"):
        load("paper", overrides=["irm2.training.patch_px=100"])
    assert load("paper", overrides=["irm2.training.patch_px=256"]).irm2.training.patch_px == 256


def test_paper_degrades_as_equation_13() -> None:
    spec = RECIPES["paper"]().data.shard_config.spec
    assert (spec.sigma, spec.r, spec.delta, spec.q, spec.kernel_px) == (
        (0.1, 10.0),
        (0.8, 8.0),
        (0.0, 20.0),
        (60, 100),
        41,
    )


def test_pixel_ranges_follow_the_size() -> None:
    spec = RECIPES["smoke"]().data.shard_config.spec
    assert spec.sigma == (0.025, 2.5)
    assert spec.r == (0.8, 8.0)


def test_sizes_that_do_not_fit_are_refused() -> None:
    smoke = RECIPES["smoke"]()
    with pytest.raises(UsageError, match=r"irm1 is set to stage irm1 at 32 px, data\.lq_px is 64"):
        dataclasses.replace(smoke, data=dataclasses.replace(smoke.data, lq_px=64))
    with pytest.raises(UsageError, match="irm2 is set to stage tem"):
        dataclasses.replace(smoke, irm2=smoke.tem)
