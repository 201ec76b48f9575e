"""Every command of the product in a manifest is one that the command line and the recipe take, and all
agree."""

import shlex
from typing import Any

import pytest
import yaml

from pipelines.recipes.overrides import load
from pipelines.recipes.recipe import Recipe
from tests.infra.manifests import (
    COMPOSE,
    OVERLAYS,
    RAY_UP,
    Entrypoint,
    accept,
    cluster_spec,
    entrypoints,
    ray_object,
)

FOUND = entrypoints()


def recipe_of(entrypoint: Entrypoint) -> Recipe:
    given = accept(entrypoint.words)
    return load(given.get("recipe") or "smoke", None, tuple(given["overrides"] or ()))


def one(where: str) -> Entrypoint:
    (found,) = (entrypoint for entrypoint in FOUND if entrypoint.where == where)
    return found


def test_every_place_that_holds_a_command_is_read() -> None:
    assert {found.where.partition(":")[0] for found in FOUND} == {
        "docker/Dockerfile",
        "compose/compose.yaml",
        *(f"kuberay/overlays/{overlay}" for overlay in OVERLAYS),
        "ray/run.sh",
        "slurm/diffbfr.sbatch",
    }


@pytest.mark.parametrize("entrypoint", FOUND, ids=lambda found: found.where)
def test_the_command_line_and_the_recipe_take_it(entrypoint: Entrypoint) -> None:
    recipe = recipe_of(entrypoint)
    given = accept(entrypoint.words)
    if any(word.startswith("tracking.uri") for word in entrypoint.words):
        assert recipe.tracking.uri == "http://mlflow:5000"
        assert recipe.cluster.address is not None
        assert given["root"] == "s3://diffbfr/smoke"


def test_the_run_is_the_same_command_everywhere() -> None:
    """The address differs, and a GPU run has one worker a GPU."""

    def without_address(words: tuple[str, ...]) -> list[str]:
        pairs = list(words)
        for i, word in enumerate(words):
            if word.startswith("cluster.address="):
                del pairs[i - 1 : i + 1]
        return pairs

    runs = [
        one("compose/compose.yaml: run"),
        one("kuberay/overlays/pipeline"),
        one("ray/run.sh"),
        one("slurm/diffbfr.sbatch"),
    ]
    assert len({tuple(without_address(run.words)) for run in runs}) == 1


@pytest.mark.parametrize("overlay", ["pipeline", "restore"])
def test_replicas_match_the_elastic_range_of_the_command(overlay: str) -> None:
    """The workers that may be lost are those without which the command goes on; all together are those it
    asks for."""
    recipe = recipe_of(one(f"kuberay/overlays/{overlay}"))
    groups = cluster_spec(ray_object(overlay))["workerGroupSpecs"]
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    elastic = [group for group in groups if _gpus(group)] or groups
    least = recipe.cluster.min_workers or recipe.cluster.num_workers
    assert sum(group["minReplicas"] for group in elastic) == least
    assert sum(group["maxReplicas"] for group in elastic) == recipe.cluster.num_workers
    cpus = sum(int(_requests(group)["cpu"]) * group["replicas"] for group in elastic)
    assert cpus >= recipe.cluster.num_workers * max(1, recipe.cluster.cpus_per_worker)


def _requests(group: dict[str, Any]) -> dict[str, str]:
    requests: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    return requests


def _gpus(group: dict[str, Any]) -> int:
    return int(_requests(group).get("nvidia.com/gpu", 0))


@pytest.mark.parametrize(("service", "workers"), [("run", "ray-worker"), ("run-gpu", "ray-worker-gpu")])
def test_compose_has_the_workers_that_its_run_asks_for(service: str, workers: str) -> None:
    recipe = recipe_of(one(f"compose/compose.yaml: {service}"))
    assert COMPOSE["services"][workers]["deploy"]["replicas"] == recipe.cluster.num_workers
    assert COMPOSE["services"][workers]["profiles"] == COMPOSE["services"][service]["profiles"]


def test_ray_up_has_the_workers_that_its_run_asks_for() -> None:
    recipe = recipe_of(one("ray/run.sh"))
    assert RAY_UP["max_workers"] == len(RAY_UP["provider"]["worker_ips"]) == recipe.cluster.num_workers


def test_slurm_asks_for_as_many_nodes_as_the_run_has_workers() -> None:
    from tests.infra.manifests import SBATCH

    recipe = recipe_of(one("slurm/diffbfr.sbatch"))
    assert f"#SBATCH --nodes={recipe.cluster.num_workers}\n" in SBATCH


@pytest.mark.slow
@pytest.mark.parametrize(("program", "module"), [("ray", "ray.scripts.scripts"), ("mlflow", "mlflow.cli")])
def test_the_flags_of_other_programs_exist_in_the_locked_versions(program: str, module: str) -> None:
    from importlib import import_module

    group: Any = import_module(module).cli
    found = list(_calls(program))
    assert found
    for words in found:
        context = group.make_context(program, list(words))
        _, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(command.name, rest, parent=context)


def _calls(program: str) -> list[list[str]]:
    """Each call of a program in the manifests, as its words after the program's name."""
    lines = [*RAY_UP["head_start_ray_commands"], *RAY_UP["worker_start_ray_commands"]]
    calls = []
    for service in COMPOSE["services"].values():
        if service.get("entrypoint") == [program]:
            calls.append(service["command"])
        elif service.get("entrypoint") == ["bash", "-c"]:
            lines += [part for line in service["command"] for part in line.split("&&")]
    from tests.infra.manifests import SBATCH

    lines += [
        line.strip().removesuffix("&").replace("$port", "1").replace("$cpus", "1").replace("$gpus", "1")
        for line in SBATCH.replace("\\\n", " ").splitlines()
        if "srun" in line
    ]
    for line in lines:
        words = shlex.split(line.partition(" exec ")[2] or line)
        if program in words and words.index(program) in (0, *range(3, len(words))):
            calls.append(words[words.index(program) + 1 :])
    return calls


def test_the_manifests_parse() -> None:
    from tests.infra.manifests import INFRA

    for file in [*INFRA.rglob("*.yaml"), *INFRA.rglob("*.yml")]:
        assert list(yaml.safe_load_all(file.read_text()))
