"""Every environment variable that a manifest sets is one that somebody reads: the product, or the library
it is for."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.manifests import (
    COMPOSE,
    DOCKERFILE,
    RAY_UP,
    SBATCH,
    base_objects,
    documented_variables,
)


def variables() -> set[str]:
    """The variables that manifests set for our image and our processes."""
    found = set(re.findall(r"^(?:ENV|    )\s*([A-Z][A-Z_]+)=", DOCKERFILE, re.MULTILINE)) - {"PATH"}
    for service in COMPOSE["services"].values():
        if service["image"].startswith("diffbfr:"):
            found |= set(service.get("environment") or {})
            found |= set(re.findall(r"\b([A-Z_]{6,})=", str(service.get("command"))))
    (settings,) = (thing["data"] for thing in base_objects() if thing["kind"] == "ConfigMap")
    found |= set(settings)
    found |= set(re.findall(r"--env=(\w+)", str(RAY_UP)))
    return found | set(re.findall(r"^export ((?:RAY|AWS|DIFFBFR)_\w+)=", SBATCH, re.MULTILINE))


PYTHON_S_OWN = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PIP_DISABLE_PIP_VERSION_CHECK"}
OF_THE_CONTAINER_RUNTIME = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
READ_BY = {
    "AWS": "botocore",
    "MLFLOW": "mlflow",
    "RAY": "ray",
    "GIT": "git",
    "NO": "albumentations",
    "DIFFBFR": "pipelines",
}
READ_IN_CPP = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}
NAMES = sorted(variables() - PYTHON_S_OWN - OF_THE_CONTAINER_RUNTIME)


def test_there_are_variables_and_all_are_documented() -> None:
    assert len(NAMES) >= 12
    assert set(NAMES) <= documented_variables()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_library_reads_the_variable(name: str) -> None:
    package = READ_BY[name.partition("_")[0]]
    suffix = name if package != "botocore" else name.removeprefix("AWS_")
    assert any(re.search(rf"\b\w*{suffix}\b", text) for text in sources(package)), (
        f"{package} does not know {name}"
    )


def sources(package: str) -> Iterator[str]:
    """The Python sources of an installed package, some few folders deep."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    for file in sorted(Path(spec.origin).parent.rglob("*.py"), key=lambda file: (len(file.parts), file)):
        yield file.read_text(errors="replace")
