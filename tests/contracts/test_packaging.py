"""The lock satisfies every requirement, the gates call each other, and what fails fails them."""

import ast
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_of_the_lock_is_one_exact_version() -> None:
    assert [line for line in LOCKED if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


@pytest.mark.parametrize("group", ["", "dev", "infra"])
def test_the_lock_satisfies_every_requirement(group: str) -> None:
    versions = {same(name): version for name, _, version in (line.partition("==") for line in LOCKED)}
    wanted = PROJECT["optional-dependencies"][group] if group else PROJECT["dependencies"]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[same(requirement.name)]), requirement


def test_nothing_that_breaks_the_rest_is_locked() -> None:
    names = {same(line.partition("==")[0]) for line in LOCKED}
    assert not names & {
        "torchvision",
        "torchmetrics",
        "lpips",
        "torch-fidelity",
        "albumentationsx",
        "opencv-python",
    }


def test_a_commit_must_pass_what_make_check_runs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == ["make check"]


def dry_run(target: str) -> str:
    """The commands of a make target, with .venv taken for installed; the same from a shell and from inside
    `make test`.
    """
    words = ["make", "--dry-run", "--assume-old=.venv/.installed", target]
    outside = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(words, cwd=ROOT, env=outside, check=True, capture_output=True, text=True).stdout


def test_check_formats_lints_types_and_tests() -> None:
    commands = dry_run("check")
    assert [
        part
        for part in (
            "ruff format --check",
            "ruff check",
            "mypy",
            'pytest -q -n 2 --dist worksteal -m "not slow and not cluster"',
        )
        if part not in commands
    ] == []


def test_demo_runs_the_pipeline_and_test_runs_every_test() -> None:
    assert dry_run("demo").strip().splitlines()[-3:] == [
        ".venv/bin/diffbfr run --recipe smoke --root build/demo",
        ".venv/bin/diffbfr setup faces",
        ".venv/bin/diffbfr restore docs/photos/astronaut.jpg build/demo-photo --upscale 4",
    ]
    marked = [line.partition("-m pytest -q ")[2] for line in dry_run("test").strip().splitlines()[-2:]]
    assert marked[0] == '-n 2 --dist worksteal -m "not cluster"'
    assert marked[1].startswith("-m cluster $(grep "), "each test has one of the two marks"
    search = marked[1].removeprefix("-m cluster ")
    found = subprocess.run(
        ["bash", "-c", f"printf '%s\n' {search}"], cwd=ROOT, check=True, capture_output=True
    )
    tests = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "cluster" in path.read_text()]
    assert {path.relative_to(ROOT).as_posix() for path in tests if _marks_cluster(path)} <= set(
        found.stdout.decode().split()
    )


def _marks_cluster(path: Path) -> bool:
    """Whether a test, or all of a file, has the mark."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "cluster"
        and ast.unparse(node.value).endswith("mark")
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_continuous_integration_fails_when_a_test_fails(tmp_path: Path) -> None:
    script = (ROOT / ".ci/run").read_text()
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").write_text(script)
    for broken in ("lint", "test"):
        rules = {target: "false" if target == broken else "true" for target in ("lint", "test")}
        (tmp_path / "Makefile").write_text(
            "".join(f"{target}:\n\t@{command}\n" for target, command in rules.items())
        )
        assert subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True).returncode != 0
