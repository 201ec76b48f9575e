"""The files of `infra/` as the tests read them, and every command in them that calls the product."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli.app import app

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
OVERLAYS = ("pipeline", "restore", "interactive")
LOCK = dict(re.findall(r"^([\w.-]+)==([\w.+-]+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Entrypoint:
    """A command of the product, and the file and place that hold it."""

    where: str
    words: tuple[str, ...]


def load_yaml(path: str) -> Any:
    return yaml.safe_load((INFRA / path).read_text())


COMPOSE = load_yaml("compose/compose.yaml")
RAY_UP = load_yaml("ray/cluster.yaml")
DOCKERFILE = (INFRA / "docker/Dockerfile").read_text()
SBATCH = (INFRA / "slurm/diffbfr.sbatch").read_text()


def tool(name: str) -> str:
    """The path of an external program, installed or of `make validators`; skips the test if it is not here."""
    found = shutil.which(name) or shutil.which(name, path=str(ROOT / "build/validators/bin"))
    if found is None:
        pytest.skip(f"{name} is not installed; tests/README.md says where it comes from")
    return found


def run_tool(*words: str, cwd: Path = INFRA) -> str:
    """Run a program; its output, which the test's failure shows."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ray_object(overlay: str) -> Manifest:
    """The RayJob or RayCluster of an overlay."""
    folder = INFRA / "kuberay/overlays" / overlay
    (file,) = (path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")
    found: Manifest = yaml.safe_load(file.read_text())
    return found


def cluster_spec(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return spec


def pod_templates(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Each pod template of a RayJob or RayCluster, with a name."""
    spec = cluster_spec(manifest)
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if submitter := manifest["spec"].get("submitterPodTemplate"):
        yield "submitter", submitter


def base_objects() -> list[Manifest]:
    """The objects that the base of the overlays lists."""
    base = INFRA / "kuberay/base"
    names = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    return [yaml.safe_load((base / name).read_text()) for name in names]


def instructions(name: str) -> list[str]:
    """The arguments of each Dockerfile instruction of one name, continued lines joined."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def entrypoints() -> list[Entrypoint]:
    """Every command of the product in every manifest."""
    return [*_image(), *_compose(), *_kuberay(), *_ray_up(), *_slurm()]


def _image() -> Iterator[Entrypoint]:
    entry, command = (yaml.safe_load(instructions(name)[-1]) for name in ("ENTRYPOINT", "CMD"))
    yield Entrypoint("docker/Dockerfile", tuple([*entry, *command][entry.index("diffbfr") :]))


def _compose() -> Iterator[Entrypoint]:
    for name, service in COMPOSE["services"].items():
        if service.get("entrypoint") == ["bash", "-c"]:
            for line in service["command"]:
                if words := _product_call(line):
                    yield Entrypoint(f"compose/compose.yaml: {name}", words)


def _kuberay() -> Iterator[Entrypoint]:
    for overlay in OVERLAYS:
        if entrypoint := ray_object(overlay)["spec"].get("entrypoint"):
            yield Entrypoint(f"kuberay/overlays/{overlay}", tuple(shlex.split(entrypoint)))
    # the command that the comment of the RayCluster tells people to send
    (line,) = re.findall(
        r"^#\s+ray job submit .*? -- (.*)$",
        (INFRA / "kuberay/overlays/interactive/raycluster.yaml").read_text(),
        re.MULTILINE,
    )
    yield Entrypoint("kuberay/overlays/interactive: comment", tuple(shlex.split(line)))


def _ray_up() -> Iterator[Entrypoint]:
    words = _product_call((INFRA / "ray/run.sh").read_text().replace("\\\n", " ").splitlines()[-1])
    assert words
    yield Entrypoint("ray/run.sh", words)


def _slurm() -> Iterator[Entrypoint]:
    (array,) = re.findall(r"# ENTRYPOINT\n\s+entrypoint=\((.*?)\)\n", SBATCH, re.DOTALL)
    address = ("--set", "cluster.address=HEAD:6379")  # which the script appends
    yield Entrypoint("slurm/diffbfr.sbatch", (*shlex.split(array), *address))
    (line,) = re.findall(r"^#\s+sbatch .*?diffbfr\.sbatch (diffbfr .*)$", SBATCH, re.MULTILINE)
    yield Entrypoint("slurm/diffbfr.sbatch: comment", (*shlex.split(line), *address))


def _product_call(line: str) -> tuple[str, ...]:
    _, found, call = line.partition("exec diffbfr ")
    return ("diffbfr", *shlex.split(call)) if found else ()


def accept(words: tuple[str, ...]) -> Mapping[str, Any]:
    """Let the command line parse a command, without running it."""
    assert words[0] == "diffbfr"
    group: Any = typer.main.get_command(app)
    context = group.make_context("diffbfr", list(words[1:]))
    _, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    params: Mapping[str, Any] = command.make_context(command.name, rest, parent=context).params
    return params


@cache
def documented_variables() -> frozenset[str]:
    """The environment variables that docs/operations.md lists."""
    section = (
        (ROOT / "docs/operations.md")
        .read_text()
        .partition("## Environment variables")[2]
        .partition("\n## ")[0]
    )
    return frozenset(re.findall(r"`([A-Z][A-Za-z0-9_]+)`", section))
