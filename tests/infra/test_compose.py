"""The compose file: no password in it, nothing published, every reference has its source."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.infra.manifests import COMPOSE, INFRA, documented_variables, run_tool, tool

SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("diffbfr:")}
SECRET_WORDS = ("password", "secret", "token", "key")


def test_the_specification_of_compose_takes_it() -> None:
    import yaml

    compose_spec = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    assert set(parsed.service_names()) == set(SERVICES)


def docker_compose() -> list[str]:
    """Compose as a plugin of docker, or the program of its own; skips the test without either."""
    docker = shutil.which("docker")
    if docker and not subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        return [docker, "compose"]
    return [tool("docker-compose")]


@pytest.mark.parametrize("profile", ["cpu", "gpu", "monitoring"])
def test_docker_compose_config_takes_it(profile: str) -> None:
    words = ["-f", str(INFRA / "compose/compose.yaml"), "--profile", profile, "config", "--format", "json"]
    resolved = json.loads(run_tool(*docker_compose(), *words))
    expected = {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}
    assert set(resolved["services"]) == expected


def test_every_profile_is_one_of_three_and_servers_belong_to_all() -> None:
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    assert profiles == {"cpu", "gpu", "monitoring"}
    for name in ("postgres", "s3", "bucket", "mlflow", "ray-head"):
        assert "profiles" not in SERVICES[name]


def test_services_depend_on_services_that_are_there_and_say_when_they_are_ready() -> None:
    for name, service in SERVICES.items():
        needed = service.get("depends_on", {})
        for other in needed:
            assert other in SERVICES, f"{name} depends on {other}"
            condition = needed[other]["condition"] if isinstance(needed, dict) else "service_started"
            if condition == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{other} never becomes healthy"
            same = set(SERVICES[other].get("profiles", service.get("profiles", [])))
            assert same == set(service.get("profiles", same)), f"{name} starts where {other} does not"


def test_every_secret_is_a_file_that_the_script_makes(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets"
    script.write_text((INFRA / "compose/make-secrets").read_text())
    subprocess.run(["sh", str(script)], check=True, capture_output=True, timeout=20)
    made = {f"secrets/{path.name}" for path in (tmp_path / "secrets").iterdir()}
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} == made
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700

    key = (tmp_path / "secrets/s3_credentials").read_text().split("aws_secret_access_key = ")[1].strip()
    assert len(key) >= 40
    assert key in (tmp_path / "secrets/s3_identities.json").read_text()
    tokens = {(tmp_path / "secrets" / name).read_text() for name in ("ray_token", "postgres_password")}
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 40

    again = subprocess.run(["sh", str(script)], capture_output=True, text=True, timeout=20)
    assert again.returncode == 2
    assert "secrets exists; expected none" in again.stderr


def test_every_secret_that_a_service_names_is_declared_and_mounted_where_it_is_read() -> None:
    for name, service in SERVICES.items():
        mounted = set(service.get("secrets", []))
        assert mounted <= set(COMPOSE["secrets"]), name
        text = str([service.get("environment"), service.get("command")])
        read = {word for word in COMPOSE["secrets"] if f"/run/secrets/{word}" in text}
        assert read == mounted, name


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in (service.get("environment") or {}).items():
            if any(word in variable.lower() for word in SECRET_WORDS):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"


def test_every_variable_of_our_image_is_documented() -> None:
    for name, service in OURS.items():
        unknown = set(service.get("environment") or {}) - documented_variables()
        assert not unknown, f"{name} sets {sorted(unknown)}, which docs/operations.md does not list"


def test_what_runs_ray_has_the_token_and_no_rights() -> None:
    for name, service in OURS.items():
        words = f"{service.get('entrypoint')} {service.get('command')}"
        if "ray start" in words or "'ray'" in words:
            assert service["environment"]["RAY_AUTH_MODE"] == "token", name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_ports_are_published_on_this_machine_only() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert COMPOSE["networks"]["servers"]["internal"]
    assert SERVICES["postgres"]["networks"] == ["servers"]


def test_images_of_others_are_of_one_version() -> None:
    for name, service in SERVICES.items():
        if name not in OURS:
            tag = service["image"].rpartition(":")[2]
            assert any(sign.isdigit() for sign in tag), f"{name}: {service['image']}"
            assert "minio" not in service["image"], "its community edition is archived"


def test_volumes_are_declared_or_files_of_this_repository() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (INFRA / "compose" / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source


def test_git_ignores_the_secrets() -> None:
    root = INFRA.parent
    if not (root / ".git").exists() or "GIT_DIR" in os.environ:
        pytest.skip("no git checkout")
    for path in ("infra/compose/secrets/ray_token", "infra/kuberay/secrets/credentials.env"):
        done = subprocess.run(["git", "check-ignore", path], cwd=root, capture_output=True)
        assert done.returncode == 0, path
