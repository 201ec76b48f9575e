"""Every command of README and docs is accepted by the program that it calls; those of the product also run."""

import importlib.util
import re
import shlex
import sys
import zipfile
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from diffbfr.faces.weights import MTCNN, convert_wheel
from diffbfr.images import encode_png
from diffbfr.synthetic import render_face
from pipelines.cli import main
from pipelines.cli.app import app
from pipelines.dataset.manifest import open_dataset
from pipelines.recipes import overrides
from pipelines.recipes.overrides import load
from pipelines.recipes.presets import smoke
from pipelines.recipes.recipe import Recipe
from pipelines.registry import CASCADE
from pipelines.tracking.connection import open_registry
from tests.diffbfr.faces.detector_files import wheel
from tests.docs.pages import PAGES, ROOT, blocks, inline_commands, name_of, shell_commands
from tests.pipelines.tiny_dataset import build, make_photos

COMMANDS = sorted({(name_of(page), command) for page in PAGES for command in shell_commands(page)})
INLINE = sorted({(name_of(page), command) for page in PAGES for command in inline_commands(page)})
OTHER_PROGRAMS = {"docker", "kubectl", "source", "pip", "ray", "sbatch", ".venv/bin/pre-commit"}
RUN_PAGES = (
    ("README.md",),
    ("docs/quickstart.md", "docs/datasets.md", "docs/restore.md"),
    ("docs/registry.md",),
)
"""Pages that are read one after another; each row begins with a candidate and no champion."""
FIRST_RUN = "diffbfr run --recipe smoke --faces PHOTOS --root runs"
ELSEWHERE = (
    "s3://",
    "cluster.",
    "synthetic:count=50",
    "data checksums eval",
    "setup faces",
    "diffbfr app",
    "data.align",
    "data show whole",
)
"""Words of commands that need a server, a cluster, a detector or another dataset; they are only parsed."""
FAILS = {"models rollback": "has no previous champion"}


@pytest.mark.parametrize(("page", "command"), COMMANDS + INLINE)
def test_a_command_is_accepted(page: str, command: str) -> None:
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    program = words[0].removeprefix(".venv/bin/")
    if program == "diffbfr":
        _check_product(["diffbfr", *words[1:]])
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python":
        _check_python(words[1:])
    elif not (ROOT / words[0]).is_file():
        assert words[0] in OTHER_PROGRAMS, f"{page}: no test knows {words[0]}"
        files = [following for option, following in pairwise(words) if option in ("-f", "-k")]
        assert [file for file in files if not (ROOT / file).exists()] == []


def _check_product(words: list[str]) -> None:
    """It names a command, or the command line parses it and the recipe has its settings."""
    command, rest = _find_command(words[1:])
    if not rest or hasattr(command, "commands"):
        assert not rest, f"{' '.join(words)}: no such command"
        return
    given = command.make_context(command.name, rest).params
    settings = tuple(given.get("overrides") or ())
    if given.get("faces"):
        settings = (f"data.faces={given['faces']}", *settings)
    load(given.get("recipe") or "smoke", None, settings)


def _find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after them."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command, [word for word in words if word != "--help"]


def _check_python(words: list[str]) -> None:
    """The module or file exists."""
    if words[0] == "-m":
        module = words[1].removesuffix(".NAME")
        assert importlib.util.find_spec(module) is not None, module
        files = [word for word in words[2:] if word.endswith(".py")]
    else:
        files = words[:1]
    assert [file for file in files if not (ROOT / file).exists()] == []


def _small(name: str) -> Recipe:
    """A recipe that runs in seconds in this process, under the name of another."""
    recipe = smoke()

    def brief(stage: Any) -> Any:
        training = replace(
            stage.training,
            num_samples=8,
            global_batch=4,
            warmup_samples=0,
            decay_samples=0,
            checkpoint_samples=8,
        )
        return replace(stage, training=training)

    return replace(
        recipe,
        name=name,
        data=replace(
            recipe.data,
            faces="synthetic:count=16,seed=0,px=128",
            shard_size=8,
            variants=1,
            val_fraction=0.0,
            test_fraction=0.3,
        ),
        irm1=brief(recipe.irm1),
        irm2=brief(recipe.irm2),
        tem=brief(recipe.tem),
        evaluate=replace(recipe.evaluate, max_faces=2, num_panels=1),
        restore=replace(recipe.restore, num_photos=2),
        cluster=replace(recipe.cluster, num_workers=0),
    )


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the photos that the pages name, a detector of random weights that finds no face, and
    recipes of the same names that are brief.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PHOTOS").mkdir()
    (tmp_path / "CROPS").mkdir()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for seed in range(6, 12):  # 8 and 10 are held out
            data = encode_png(render_face(seed, 128).pixels)
            (tmp_path / "PHOTOS" / f"{seed:02d}.png").write_bytes(data)
            (tmp_path / "CROPS" / f"{seed:02d}.png").write_bytes(data)
            if seed < 8:
                archive.writestr(f"{seed:02d}.png", data)
    names = list(overrides.RECIPES)
    monkeypatch.setattr(overrides, "RECIPES", {name: (lambda name=name: _small(name)) for name in names})
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFBFR_FACE_DETECTOR", raising=False)
    (tmp_path / "cache" / "faces").mkdir(parents=True)
    (tmp_path / "cache" / "faces" / MTCNN).write_bytes(convert_wheel(wheel()))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_pages_run_in_their_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: str) -> None:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        errors = capsys.readouterr().err
        expected = next((line for words, line in FAILS.items() if words in command), None)
        if expected is None:
            assert not ended.value.code, f"{command}: {errors[-500:]}"
        else:
            assert expected in errors

    run(FIRST_RUN)
    done = set()
    for pages in RUN_PAGES:
        client = open_registry("runs").client
        client.delete_registered_model_alias(CASCADE, "champion")
        client.set_registered_model_alias(CASCADE, "candidate", "1")
        for command in chain.from_iterable(shell_commands(ROOT / page) for page in pages):
            if command.startswith("diffbfr ") and not any(it in command for it in ELSEWHERE):
                run(command)
                done.add(command)
    assert FIRST_RUN in done
    assert len(done) >= 20


def test_the_python_of_the_readme_and_the_datasets_page_reads_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(make_photos(tmp_path / "photos", 20), tmp_path / "DATASET")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "README.md", "python"):
        exec(block, names)
    assert names["hq"].shape == (32, 32, 3)
    (example,) = blocks(ROOT / "docs/datasets.md", "python")
    exec(example, names)
    dataset = open_dataset("DATASET")
    assert len(set(names["shown"])) == 8
    assert set(names["shown"]) <= set(dataset.keys("train"))
    assert len(names["state"]) < 1000
    batch = next(iter(names["resumed"]))
    assert [sample.position for sample in batch] == [8, 9]
    assert [picture.shape for picture in batch[0].value] == [(8, 8, 3), (8, 8, 3)]


@pytest.mark.slow
def test_the_python_of_the_restore_page_reads_a_ledger_and_restores_a_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.dataset.manifest import write_ledger

    (tmp_path / "restored").mkdir()
    write_ledger(str(tmp_path / "restored/ledger.parquet"), [])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs/restore.md", "python"):
        exec(block, names)
    assert names["restored"].shape == (128, 128, 3)


def test_the_step_of_contributing_builds_its_artifact(tmp_path: Path) -> None:
    """The file of the step, run with a context that has a dataset and no Ray."""
    from types import SimpleNamespace

    from pipelines.cluster import Cluster, ClusterConfig

    step, call = blocks(ROOT / "CONTRIBUTING.md", "python")
    build(make_photos(tmp_path / "photos", 8), tmp_path / "data")
    names: dict[str, Any] = {"__name__": "pipelines.steps.count"}
    exec(step, names)
    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        context = SimpleNamespace(cluster=cluster, artifact_dir=lambda name: str(tmp_path / "data"))
        output = names["COUNT"].build(context, str(tmp_path / "artifact"))
    assert output.metadata == {"faces": 8}
    assert (tmp_path / "artifact" / output.outputs["counts"]).is_file()
    added: list[Any] = []
    context = SimpleNamespace(add=lambda definition, **inputs: added.append((definition.name, inputs)))
    exec(call, {"ctx": context, "COUNT": names["COUNT"], "dataset": SimpleNamespace(id="ID")})
    assert added == [("count", {"dataset": "ID"})]
