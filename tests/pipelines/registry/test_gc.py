"""A collection removes every version that nothing references and nothing else, after any history."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbfr.errors import DiffBFRError
from diffbfr.stages import STAGE_NAMES
from pipelines.registry import (
    ModelVersion,
    collect_garbage,
    fsck,
    get_version,
    list_versions,
    promote,
    rollback,
)
from pipelines.registry import gc as module
from pipelines.registry.fetching import fetch
from pipelines.registry.gc import unreferenced_versions
from pipelines.registry.versions import CASCADE
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import Run
from tests.counts import count
from tests.pipelines.registry.fixtures import ROOT, CascadeMaker


def stage(name: str, number: int, **tags: str) -> ModelVersion:
    return ModelVersion(f"diffbfr-{name}", number, f"{name}-{number}", (), "", "", "", {"root": ROOT, **tags})


@st.composite
def registries(draw: st.DrawFn) -> tuple[tuple[ModelVersion, ...], frozenset[str]]:
    """Stages, IRM-2s that learnt from an IRM-1, cascades of any of them, aliases and records on anything."""
    numbers = range(1, 1 + draw(st.integers(1, 4)))
    any_number = st.sampled_from(list(numbers))
    versions = [stage(name, number) for name in ("irm1", "tem") for number in numbers]
    versions += [stage("irm2", number, **{"parent.irm1": f"irm1-{draw(any_number)}"}) for number in numbers]
    for number in range(1, 1 + draw(st.integers(0, 4))):
        parts = {name: draw(any_number) for name in STAGE_NAMES}
        tags = {f"stage.{name}": f"diffbfr-{name}@{part}" for name, part in parts.items()}
        versions.append(stage("cascade", number, **tags))
    marks = draw(
        st.lists(
            st.sampled_from(["", "alias", "record", "digest", "other root"]),
            min_size=len(versions),
            max_size=len(versions),
        )
    )
    made, named = [], set()
    for version, mark in zip(versions, marks, strict=True):
        aliases = ("candidate",) if mark == "alias" else ()
        tags = dict(version.tags) | ({"root": "elsewhere"} if mark == "other root" else {})
        made.append(ModelVersion(version.name, version.version, version.digest, aliases, "", "", "", tags))
        named |= {"record": {version.ref}, "digest": {version.digest}}.get(mark, set())
    return tuple(made), frozenset(named)


@given(registries())
def test_what_anything_names_is_never_garbage(case: tuple[tuple[ModelVersion, ...], frozenset[str]]) -> None:
    versions, named = case
    doomed = {version.ref for version in unreferenced_versions(versions, named, ROOT)}
    kept = [version for version in versions if version.ref not in doomed]
    alive = {version.ref for version in kept} | {version.digest for version in kept}
    for version in versions:
        if version.aliases or {version.ref, version.digest} & named or version.tags["root"] != ROOT:
            assert version in kept
    for version in kept:
        assert {
            value for tag, value in version.tags.items() if tag.startswith(("stage.", "parent."))
        } <= alive
    roots = {
        version.ref
        for version in kept
        if version.aliases or {version.ref, version.digest} & named or version.tags["root"] != ROOT
    }
    links = {value for version in kept for tag, value in version.tags.items() if tag != "root"}
    assert all(version.ref in roots or {version.ref, version.digest} & links for version in kept), (
        "nothing is kept without a reason"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(count(1, 3)))
def test_no_history_loses_what_an_alias_or_a_record_names(
    seed: int,
    make_cascade: CascadeMaker,
    registry: Registry,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAY_UPLOAD_S", 0.0)
    dice, records = random.Random(seed), set[str]()

    def register() -> None:
        version = make_cascade(dice.randrange(6))
        if dice.random() < 0.5:
            records.add(version.ref)

    def forget() -> None:
        if records:
            records.remove(dice.choice(sorted(records)))

    def lose_an_upload() -> None:
        name = f"{dice.randrange(100):03d}"
        run.log_tags({"diffbfr.uploads": "yes", f"diffbfr.uploads.{name}": f"models/{name}"})
        run.log_bytes(f"models/{name}/tem.safetensors", b"half")

    def move() -> None:
        try:
            dice.choice([lambda: promote(registry, force=True), lambda: rollback(registry)])()
        except DiffBFRError:
            return

    def collect() -> None:
        planned = collect_garbage(registry, ROOT, records, plan=True)
        assert collect_garbage(registry, ROOT, records) == planned
        assert collect_garbage(registry, ROOT, records) == ()
        check()

    def check() -> None:
        assert fsck(registry) == ()
        for version in list_versions(registry):
            fetch(registry, version, tmp_path / "cache")
        assert records <= {version.ref for version in list_versions(registry, CASCADE)}
        reached = {version.ref for version in list_versions(registry, CASCADE) if version.aliases} | records
        assert {version.ref for version in list_versions(registry, CASCADE)} == reached

    register()
    for act in dice.choices([register, forget, lose_an_upload, move, collect], weights=[3, 2, 1, 3, 2], k=16):
        act()
    collect()


def test_files_under_way_are_no_garbage(
    run: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_tags({"diffbfr.uploads": "yes", "diffbfr.uploads.abc": "models/abc"})
    run.log_bytes("models/abc/tem.safetensors", b"half")
    assert collect_garbage(registry, ROOT, ()) == ()
    monkeypatch.setattr(module, "_MAY_UPLOAD_S", 0.0)
    assert [removal.why for removal in collect_garbage(registry, ROOT, ())] == [
        "no version names these files"
    ]
    assert registry.client.list_artifacts(run.run_id, "models") == []


@pytest.mark.slow
def test_another_roots_version_stays(make_cascade: CascadeMaker, registry: Registry) -> None:
    make_cascade(1)
    make_cascade(2)
    assert collect_garbage(registry, "/another/root", ()) == ()
    removed = [removal.name for removal in collect_garbage(registry, ROOT, ())]
    assert removed[0] == "diffbfr-cascade@1"
    assert sorted(removed[1:4]) == ["diffbfr-irm1@1", "diffbfr-irm2@1", "diffbfr-tem@1"]
    assert get_version(registry, "diffbfr-cascade@candidate").version == 2
