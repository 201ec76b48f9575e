"""A second cascade in the package: made by one command, with a card from the record, found by name and by default.

The weights are those of the packaged cascade, under a temporary folder; nothing of this is kept.
"""

import importlib
import json
import shutil
import sys
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

from diffbfr import packaged
from diffbfr.cascade import cascade_digest, packaged_cascade
from diffbfr.errors import UsageError
from diffbfr.packaged import CARD, FACES, default_cascade, packaged_folder, packaged_names, read_card
from diffbfr.stages import PACKAGED, STAGE_NAMES
from pipelines.cli import main, options
from pipelines.cli.cascades import pin
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore, Identity
from pipelines.execution.dag import Step, StepOutput
from pipelines.execution.runner import run_steps
from pipelines.experiments.model_card import count_sources, read_terms
from pipelines.experiments.package_cascade import CardRequest, package
from pipelines.flows import train_cascade
from pipelines.recipes.overrides import load
from tests.pipelines.evaluation.random_weights import write_random_weights

ROOT = Path(__file__).parents[3]
TERMS = """
title = "Drawn faces"
summary = "For a test."
use = ["Testing."]
limits = ["Everything."]
[[sources]]
pattern = "*"
name = "Drawings"
licence = "CC0-1.0"
terms = "none"
people = "nobody"
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run, whose cascade is the packaged one and whose dataset has a few drawn faces."""
    write_random_weights(tmp_path / "cache")
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    recipe = load("tiny", None, ("data.faces=synthetic:count=6,seed=3,px=128", "data.variants=1"))
    recipe = replace(
        recipe,
        data=replace(recipe.data, test_fraction=0.6, val_fraction=0.0),
        cluster=replace(recipe.cluster, num_workers=0),
    )
    root = str(tmp_path / "root")
    report = train_cascade.run(recipe, root, until="shard")
    dataset = report.steps[-1].artifact

    def build(folder: str) -> StepOutput:
        shutil.copytree(packaged_cascade(), folder, dirs_exist_ok=True)
        names = [path.name for path in Path(folder).iterdir()]
        stages = {stage: {"artifact": "", "digest": ""} for stage in STAGE_NAMES}
        facts = {"recipe": "tiny", "content_id": "abc", "dataset": dataset, "stages": stages}
        return StepOutput({name: name for name in names}, facts)

    store = ArtifactStore(root)
    run_steps([Step(Identity("cascade", {}, {"dataset": dataset}, {}), build, lambda: "")], store)
    return root


@pytest.mark.slow
def test_one_command_makes_a_cascade_that_is_found_by_name_and_by_default(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terms, groups, table = tmp_path / "terms.toml", tmp_path / "groups.csv", tmp_path / "table.txt"
    terms.write_text(TERMS)
    table.write_text("LPIPS 0.1")
    dataset = open_dataset(next((Path(root) / "artifacts" / "shard").iterdir()).as_posix())
    groups.write_text(
        "file,group\n" + "".join(f"{Path(it.source).name},{n % 2}\n" for n, it in enumerate(dataset.samples))
    )
    weights = tmp_path / "weights"
    shutil.copytree(packaged_folder(PACKAGED), weights / "tiny")
    monkeypatch.setattr(packaged, "_WEIGHTS", weights)
    assert (packaged_names(), default_cascade()) == ((PACKAGED,), PACKAGED)
    with pytest.raises(UsageError, match="faces has no card"):
        package(root, FACES)

    card = CardRequest(terms, tmp_path / "scores", groups, {"Elsewhere": table})
    made = package(root, FACES, "a note", card)
    assert made == weights / "faces"
    assert (packaged_names(), default_cascade()) == ((PACKAGED, FACES), FACES)
    assert importlib.reload(options).DEFAULT_MODEL == FACES
    assert pin(FACES, root, None).digest == cascade_digest(made)
    assert pin(PACKAGED, root, None).digest == cascade_digest(weights / "tiny")
    text = read_card(FACES)
    for words in (
        "# Drawn faces",
        "| Drawings | 6 | 6 | CC0-1.0 | nobody |",
        "| evaluations | 20 + 10 + 8 |",
        "| TEM, the result |",
        "group of people" if "No group" in text else "worse than the mean on",
        "Elsewhere:\n\n```\nLPIPS 0.1",
        "a note",
    ):
        assert words in text, words
    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", "show", FACES])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert capsys.readouterr().out.strip() == text.strip()

    scored = next((tmp_path / "scores").glob("*/*.json"))
    before = scored.stat().st_mtime_ns
    package(root, FACES, "another", card)
    assert scored.stat().st_mtime_ns == before
    assert "another" in read_card(FACES)

    monkeypatch.undo()
    assert default_cascade() == importlib.reload(options).DEFAULT_MODEL


@pytest.mark.slow
def test_too_large_a_cascade_and_photos_without_terms_replace_nothing(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "weights" / "faces"
    monkeypatch.setattr("pipelines.experiments.package_cascade.MAX_BYTES", {PACKAGED: 1_000})
    with pytest.raises(UsageError, match="expected at most 1,000; make the stages smaller"):
        package(root, PACKAGED, target=target)
    assert not target.exists()
    terms = tmp_path / "terms.toml"
    terms.write_text(TERMS.replace('"*"', '"fairface-*"'))
    dataset = open_dataset(next((Path(root) / "artifacts" / "shard").iterdir()).as_posix())
    with pytest.raises(UsageError, match="fits no pattern of the terms"):
        count_sources(dataset, read_terms(terms))


def test_the_terms_of_real_faces_name_a_licence_for_each_source() -> None:
    terms = read_terms(ROOT / "docs/cards/faces.toml")
    assert [source.licence for source in terms.sources] == ["CC BY 4.0", "public domain"]
    assert terms.limits


def test_what_the_package_ships_is_in_its_wheel(capsys: pytest.CaptureFixture[str]) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_namespace_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    patterns = settings["package-data"]["*"]
    for name in packaged_names():
        folder = packaged_folder(name)
        assert folder.relative_to(ROOT).as_posix().replace("/", ".") in packages
        for file in folder.iterdir():
            assert any(fnmatch(file.name, pattern) for pattern in patterns), file
    assert any(fnmatch(CARD, pattern) for pattern in patterns)
    assert json.loads((packaged_folder(PACKAGED) / "cascade.json").read_text())["weights"] == "float16"
