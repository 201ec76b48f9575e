"""The image: what it is built from, who it runs as, and that its names agree with the lock."""

import re
import subprocess
from pathlib import Path

import pytest

import diffbfr
from tests.infra.manifests import (
    COMPOSE,
    DOCKERFILE,
    INFRA,
    LOCK,
    OVERLAYS,
    RAY_UP,
    ROOT,
    cluster_spec,
    instructions,
    pod_templates,
    ray_object,
    run_tool,
    tool,
)

TAG = f"diffbfr:{diffbfr.__version__}-ray{LOCK['ray']}"
IMAGES = {f"{TAG}-cpu", f"{TAG}-cuda"}


def images() -> dict[str, str]:
    """Each image of ours by the place that names it."""
    found = {
        f"compose {name}": service["image"]
        for name, service in COMPOSE["services"].items()
        if "build" in service
    }
    found["ray up"] = RAY_UP["docker"]["image"]
    for overlay in OVERLAYS:
        for name, template in pod_templates(ray_object(overlay)):
            for container in template["spec"]["containers"]:
                found[f"{overlay} {name}"] = container["image"]
    return found


def test_every_place_names_an_image_of_this_version_and_of_the_locked_ray() -> None:
    found = images()
    assert len(found) >= 15
    assert {where: image for where, image in found.items() if image not in IMAGES} == {}
    for image in IMAGES:
        assert f"-t {image} ." in DOCKERFILE


def test_the_ray_version_is_that_of_the_lock() -> None:
    for overlay in OVERLAYS:
        assert cluster_spec(ray_object(overlay))["rayVersion"] == LOCK["ray"]
    assert f'io.ray.version="{LOCK["ray"]}"' in DOCKERFILE


def test_gpus_are_asked_for_where_and_only_where_the_cuda_image_runs() -> None:
    for overlay in OVERLAYS:
        for name, template in pod_templates(ray_object(overlay)):
            (container,) = template["spec"]["containers"]
            has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert has_gpu == container["image"].endswith("-cuda"), f"{overlay} {name}"
    for name, service in COMPOSE["services"].items():
        if "reservations" in service.get("deploy", {}).get("resources", {}):
            assert service["image"].endswith("-cuda"), name


def test_the_python_is_one_that_the_lock_was_resolved_for_without_its_known_holes() -> None:
    """CVE-2025-8194 (tar members of a negative size) and CVE-2024-6232 (PAX headers)."""
    (version,) = re.findall(r"^ARG PYTHON=([\d.]+)$", DOCKERFILE, re.MULTILINE)
    major, minor, patch = map(int, version.split("."))
    assert (major, minor) == (3, 11)
    assert patch >= 14


def test_the_image_installs_from_the_lock_and_copies_what_is_there() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [copy for copy in instructions("COPY") if "--from" not in copy]
    sources = [word for copy in copies for word in copy.split()[:-1] if not word.startswith("--")]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source.removeprefix("./").startswith(name) for name in allowed), source
    installs = [run for run in instructions("RUN") if "pip install" in run]
    assert len(installs) == 4
    for run in installs:
        assert "--constraint requirements.lock" in run or "--no-deps" in run
    assert any('".[infra]"' in run for run in installs), "the runtime, without the tools of developers"


def test_the_last_stage_is_slim_and_runs_as_nobody_special_with_a_health_check() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.match(r"\nFROM python:\$\{PYTHON\}-slim-\w+\n", last)
    assert "pip install" not in last
    assert "COPY --from=install /opt/venv /opt/venv" in last
    assert re.search(r"^USER 1000:1000$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last


def test_the_health_check_asks_what_was_started(tmp_path: Path) -> None:
    """With a double of wget: it is called for a Ray node and for a tracking server, and not for a driver
    alone."""
    (tmp_path / "wget").write_text(
        '#!/bin/sh\nfor last; do :; done\necho "$last" >>"$CALLS"\nexit "${ANSWER:-0}"\n'
    )
    (tmp_path / "wget").chmod(0o755)
    calls = tmp_path / "calls"

    def check(**environment: str) -> int:
        calls.write_text("")
        environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls)}
        script = str(INFRA / "docker/healthcheck")
        return subprocess.run(["sh", script], env=environment, timeout=20).returncode

    assert check(RAY_TMPDIR=str(tmp_path)) == 0
    assert calls.read_text() == ""
    (tmp_path / "ray/session_latest").mkdir(parents=True)
    assert check(RAY_TMPDIR=str(tmp_path)) == 0
    assert "52365/api/local_raylet_healthz" in calls.read_text()
    assert check(RAY_TMPDIR=str(tmp_path), ANSWER="4") != 0
    assert check(RAY_TMPDIR="/nowhere", MLFLOW_BACKEND_STORE_URI="x") == 0
    assert "5000/health" in calls.read_text()


def test_hadolint_finds_nothing() -> None:
    run_tool(tool("hadolint"), str(INFRA / "docker/Dockerfile"))


@pytest.mark.parametrize(
    "script", ["docker/healthcheck", "compose/make-secrets", "ray/run.sh", "slurm/diffbfr.sbatch"]
)
def test_shellcheck_finds_nothing(script: str) -> None:
    run_tool(tool("shellcheck"), str(INFRA / script))
