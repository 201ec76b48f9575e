"""`--set` and configuration files: every path known, every value typed, every mistake one clear line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.degradation import PRESETS
from diffbfr.errors import UsageError
from pipelines.execution.artifact_store import flatten
from pipelines.recipes.overrides import add_option, change, load
from pipelines.recipes.presets import RECIPES
from pipelines.recipes.recipe import Recipe


def test_a_recipe_without_changes_is_itself() -> None:
    assert load("smoke") == RECIPES["smoke"]()


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("data.variants=3", lambda r: r.data.variants, 3),
        ("irm1.training.learning_rate=1e-3", lambda r: r.irm1.training.learning_rate, 1e-3),
        ("data.degradation.sigma=0.2, 8", lambda r: r.data.degradation.sigma, (0.2, 8.0)),
        ("evaluate.seeds=1,2,3", lambda r: r.evaluate.seeds, (1, 2, 3)),
        ("evaluate.seeds=4", lambda r: r.evaluate.seeds, (4,)),
        ("irm1.stage.unet.attention_px=", lambda r: r.irm1.stage.unet.attention_px, ()),
        ("irm1.training.t_max=none", lambda r: r.irm1.training.t_max, None),
        ("irm1.training.t_max=600", lambda r: r.irm1.training.t_max, 600),
        ("sampling.mode=faithful", lambda r: r.sampling.mode, "faithful"),
        ("irm2.stage.unet.scale_shift=true", lambda r: r.irm2.stage.unet.scale_shift, True),
        ("init=scratch", lambda r: r.init, "scratch"),
        ("tracking.uri=http://host:5000?a=b", lambda r: r.tracking.uri, "http://host:5000?a=b"),
    ],
)
def test_a_value_takes_the_type_of_its_field(override: str, read: object, value: object) -> None:
    assert callable(read)
    found = read(load("smoke", overrides=(override,)))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.variant=3", r"no setting 'data\.variant'; did you mean data\.variants\?"),
        ("irm1.unet.dropout=0.2", r"did you mean irm1\.stage\.unet\.dropout\?"),
        ("image_px=64", r"did you mean irm1\.stage\.unet\.image_px\?"),
        ("name=other", r"no setting 'name'"),
        ("data=3", r"data is a group of settings; expected one in it, such as data\.faces"),
        ("data.variants", r"--set data\.variants has no value"),
        ("data.variants=many", r"data\.variants=many does not fit: .*; expected int"),
        ("data.variants=2.5", r"data\.variants=2\.5 does not fit"),
        ("data.variants=", r"data\.variants= does not fit"),
        ("irm1.training.learning_rate=nan", r"finite"),
        ("sampling.mode=slow", r"expected one of fast, faithful"),
        ("data.degradation.q=60", r"data\.degradation\.q=.* does not fit"),
        ("data.degradation.q=0,100", r"degradation q"),
        ("irm1.training.num_samples=0", r"num_samples=0"),
        (
            "data.degradation.preset=gfgan",
            r"no degradation preset 'gfgan'; did you mean gfpgan\? expected one of paper, gfpgan, gpen, "
            r"codeformer, difface",
        ),
        ("data.degradation.arithmetic=fixed", r"expected one of integer, float"),
        ("data.degradation.before=absent.yaml", r"no configuration file at absent\.yaml"),
    ],
)
def test_a_mistake_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load("smoke", overrides=(override,))
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        UsageError,
        match=r"no recipe 'smol'; did you mean smoke\? expected one of smoke, tiny, small, faces128, paper",
    ):
        load("smol")


def test_changes_that_only_fit_together_are_checked_together() -> None:
    recipe = load(
        "smoke",
        overrides=(
            "data.hq_px=64",
            "data.lq_px=16",
            "irm1.stage.unet.image_px=16",
            "irm2.stage.unet.image_px=64",
            "tem.stage.unet.image_px=64",
        ),
    )
    assert (recipe.data.hq_px, recipe.tem.stage.px) == (64, 64)


FILES = {
    "a.yaml": (
        "data:\n  variants: 3\n  degradation: {sigma: [0.2, 8]}\nirm1.training.learning_rate: 1e-3\n"
        "tracking.uri: null\n"
    ),
    "a.toml": (
        "irm1.training.learning_rate = 1e-3\n[data]\nvariants = 3\n[data.degradation]\nsigma = [0.2, 8]\n"
    ),
    "a.json": json.dumps(
        {"data": {"variants": 3, "degradation": {"sigma": [0.2, 8]}}, "irm1.training.learning_rate": 0.001}
    ),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_in_each_format_says_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    same = ("data.variants=3", "data.degradation.sigma=0.2,8", "irm1.training.learning_rate=0.001")
    assert load("smoke", str(tmp_path / name)) == load("smoke", overrides=same)


def test_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FILES["a.yaml"])
    assert load("smoke", str(tmp_path / "a.yaml"), ("data.variants=5",)).data.variants == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ini", "x=1", r"ends with '\.ini'; expected \.yaml"),
        ("a.yaml", "data: [", "cannot be parsed"),
        ("a.json", "{", "cannot be parsed"),
        ("a.toml", "=", "cannot be parsed"),
        ("a.yaml", "- 1\n", "holds a list"),
        ("a.yaml", "data: {variant: 1}\n", r"did you mean data\.variants"),
        ("a.yaml", "data: {variants: [1]}\n", r"data\.variants=\[1\] does not fit"),
        ("a.yaml", "data: 1\n", "data is a group"),
    ],
)
def test_a_bad_file_is_one_clear_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load("smoke", str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no configuration file"):
        load("smoke", str(tmp_path / "absent.yaml"))


def test_every_setting_can_be_set_to_what_it_is() -> None:
    recipe = RECIPES["paper"]()

    def value(path: str) -> object:
        found: object = recipe
        for part in path.split("."):
            found = getattr(found, part)
        return found

    paths = [path for path in flatten(recipe) if path != "name"]
    assert len(paths) > 80
    assert change(recipe, {path: value(path) for path in paths}) == recipe
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_change_leaves_the_type_of_every_other_value(name: str, preset: str) -> None:
    """Digests are of JSON: 4 and 4.0 are equal, and would be two identities."""
    recipe = RECIPES[name]()
    degraded = replace(recipe, data=replace(recipe.data, degradation=PRESETS[preset]))
    expected = flatten(replace(degraded, restore=replace(degraded.restore, seed=3)))
    assert json.dumps(flatten(change(degraded, {"restore.seed": "3"}))) == json.dumps(expected)


def test_a_preset_of_the_degradation_brings_its_ranges_and_what_else_is_set_comes_on_top() -> None:
    degradation = load(
        "smoke", overrides=("data.degradation.q=50,60", "data.degradation.preset=codeformer")
    ).data.degradation
    assert degradation == replace(PRESETS["codeformer"], q=(50, 60))
    assert (
        load("paper", overrides=("data.degradation.preset=difface",)).data.degradation == PRESETS["difface"]
    )


@pytest.mark.slow
def test_a_pipeline_before_eq_13_is_read_from_a_file_or_from_the_settings(tmp_path: Path) -> None:
    (tmp_path / "before.yaml").write_text(
        "- MotionBlur: {blur_limit: [5, 9], p: 0.3}\n- OneOf:\n    transforms: [{Blur: {}}, {ISONoise: {}}]\n"
    )
    (tmp_path / "run.yaml").write_text(
        "data:\n  degradation:\n    before:\n      - MotionBlur: {blur_limit: [5, 9], p: 0.3}\n"
        "      - OneOf: {transforms: [{Blur: {}}, {ISONoise: {}}]}\n"
    )
    by_file = load("smoke", overrides=(f"data.degradation.before={tmp_path / 'before.yaml'}",)).data
    by_settings = load("smoke", str(tmp_path / "run.yaml")).data
    assert by_file == by_settings
    assert "MotionBlur" in by_file.degradation.before
    assert by_file.shard_config.recipe_digest != load("smoke").data.shard_config.recipe_digest
    (tmp_path / "wrong.yaml").write_text("- Rotate: {}\n")
    with pytest.raises(UsageError, match="Rotate is a geometric transform"):
        load("smoke", overrides=(f"data.degradation.before={tmp_path / 'wrong.yaml'}",))


@pytest.mark.parametrize(
    ("overrides", "value", "settings"),
    [
        (["data.variants=2"], "photos", ("data.variants=2", "data.faces=photos")),
        (["data.faces = photos"], "photos", ("data.faces = photos", "data.faces=photos")),
        (["data.faces=photos"], None, ("data.faces=photos",)),
        (None, "photos", ("data.faces=photos",)),
        (None, None, ()),
    ],
)
def test_an_option_joins_the_settings_that_say_the_same_or_nothing_of_it(
    overrides: list[str] | None, value: str | None, settings: tuple[str, ...]
) -> None:
    assert add_option(overrides, "--faces", "data.faces", value) == settings


def test_an_option_goes_with_no_setting_of_another_value() -> None:
    with pytest.raises(UsageError, match=r"--faces a goes with no --set data.faces=b; expected one value"):
        add_option(["data.faces=a", "data.faces=b"], "--faces", "data.faces", "a")


def test_an_option_overrides_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"data": {"faces": "b"}}))
    assert load("smoke", str(file), add_option(None, "--faces", "data.faces", "a")).data.faces == "a"
