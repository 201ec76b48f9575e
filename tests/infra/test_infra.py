"""What infra/ says is true: its files parse, its commands are accepted by the programs they call, its
versions are those of the lock.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import diffbfr
from pipelines.cli.app import app
from pipelines.recipes.overrides import load

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "infra/docker/Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "infra/compose/compose.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "infra/kuberay/rayjob.yaml").read_text())
LOCK = dict(re.findall(r"^([\w.-]+)==([\w.+-]+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
IMAGE = f"diffbfr:{diffbfr.__version__}"
RAY_PODS = [
    RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"],
    *RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"],
]
RUNS = {
    "rayjob": RAYJOB["spec"]["entrypoint"],
    "compose": COMPOSE["services"]["run"]["command"][0].partition("exec ")[2],
}


def instructions(name: str) -> list[str]:
    """The arguments of each Dockerfile instruction of one name, continued lines joined."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def accept(words: Sequence[str]) -> dict[str, Any]:
    """Let the command line parse a command, without running it."""
    assert words[0] == "diffbfr"
    group = typer.main.get_command(app)
    context = group.make_context("diffbfr", list(words[1:]))
    _, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    return command.make_context(command.name, rest, parent=context).params


@pytest.mark.parametrize("where", RUNS)
def test_the_run_is_accepted_by_the_command_line_and_its_settings_by_the_recipe(where: str) -> None:
    given = accept(shlex.split(RUNS[where]))
    recipe = load(given["recipe"], None, given["overrides"])

    assert recipe.cluster.address == "auto"
    assert recipe.cluster.num_workers == 2
    assert recipe.tracking.uri == "http://mlflow:5000"
    assert given["root"].startswith("s3://diffbfr/")


def test_compose_and_kuberay_run_the_same_command() -> None:
    assert shlex.split(RUNS["compose"]) == shlex.split(RUNS["rayjob"])


def test_the_image_runs_what_the_command_line_accepts() -> None:
    words = [*yaml.safe_load(instructions("ENTRYPOINT")[0]), *yaml.safe_load(instructions("CMD")[0])]
    assert accept(words)["recipe"] == "smoke"


def test_the_image_installs_from_the_lock_and_copies_what_is_there() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source for copy in instructions("COPY") for source in copy.split()[:-1]}

    assert {source.removeprefix("./") for source in sources} <= allowed
    assert any("-r requirements.lock" in run for run in instructions("RUN"))
    assert any("--no-deps ." in run for run in instructions("RUN"))
    python = re.search(r"python:(\d+\.\d+)", instructions("FROM")[0])
    assert python is not None
    assert python[1] == "3.11", "the Python that the lock was resolved for"


def test_every_place_names_the_same_image() -> None:
    ours = {service["image"] for service in COMPOSE["services"].values() if "build" in service}
    pods = {container["image"] for pod in RAY_PODS for container in pod["template"]["spec"]["containers"]}
    assert ours == pods == {IMAGE}
    assert f"-t {IMAGE}" in DOCKERFILE


def test_the_ray_version_of_the_job_is_that_of_the_image() -> None:
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]


def test_the_job_has_what_kuberay_requires_and_room_for_its_workers() -> None:
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    workers = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert workers["groupName"]
    for pod in RAY_PODS:
        assert all(isinstance(value, str) for value in pod["rayStartParams"].values()), (
            "KubeRay takes strings only"
        )
    cpus = (
        int(workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
        * workers["replicas"]
    )
    assert cpus >= load("smoke", None, accept(shlex.split(RUNS["rayjob"]))["overrides"]).cluster.num_workers


def test_compose_services_depend_on_services_that_are_there_and_say_when_they_are_ready() -> None:
    for name, service in COMPOSE["services"].items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in COMPOSE["services"], f"{name} depends on {other}"
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][other], f"{other} never becomes healthy"
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]


def commands(program: str) -> Iterator[list[str]]:
    """Each call of a program in the compose file, as its words after the program's name."""
    for service in COMPOSE["services"].values():
        if service.get("entrypoint") == [program]:
            yield service["command"]
        for line in service.get("command", []) if service.get("entrypoint") == ["bash", "-c"] else []:
            yield from (shlex.split(part)[1:] for part in line.split("&&") if part.split()[0] == program)


@pytest.mark.slow
@pytest.mark.parametrize(("program", "module"), [("ray", "ray.scripts.scripts"), ("mlflow", "mlflow.cli")])
def test_the_flags_of_other_programs_exist_in_the_locked_versions(program: str, module: str) -> None:
    group = import_module(module).cli
    found = list(commands(program))
    assert found
    for words in found:
        context = group.make_context(program, list(words))
        _, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(command.name, rest, parent=context)
