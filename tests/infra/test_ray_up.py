"""The cluster of `ray up` is one that Ray's own validation takes."""

from tests.infra.manifests import RAY_UP, documented_variables


def test_ray_takes_the_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(RAY_UP)
    validate_config(prepared)
    (node,) = prepared["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == 2


def test_every_variable_is_documented_and_the_token_is_a_file_that_is_copied() -> None:
    options = dict(
        option.removeprefix("--env=").split("=", 1)
        for option in RAY_UP["docker"]["run_options"]
        if option.startswith("--env=")
    )
    assert set(options) <= documented_variables()
    assert options["RAY_AUTH_MODE"] == "token"
    for name in ("RAY_AUTH_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE"):
        assert options[name] in RAY_UP["file_mounts"]


def test_every_ray_command_is_one_of_the_token_authenticated_head() -> None:
    assert any("--num-cpus=0" in command for command in RAY_UP["head_start_ray_commands"])
    assert any("$RAY_HEAD_IP" in command for command in RAY_UP["worker_start_ray_commands"])
