"""An artifact's id follows what changes it; a plan says HIT or RUN and names the reason to the field."""

import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.execution.artifact_store import ArtifactStore, Identity, OutputRef, Record, flatten
from pipelines.execution.decision import decide

BASE = Identity(
    "train-irm1",
    {"training.learning_rate": 0.0001, "px": [128, 32]},
    {"dataset": "3f" * 10},
    {"diffbfr.models.unet": "aa", "diffbfr.ema": "bb"},
)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


def make(store: ArtifactStore, identity: Identity, content: bytes = b"weights") -> Record:
    storage.write_atomic(storage.join(store.artifact_dir(identity), "deep/weights.bin"), content)
    return store.commit(identity, {"weights": "deep/weights.bin"}, {"samples": 640}, 1.5)


def test_the_id_does_not_depend_on_order_or_kind_of_mapping() -> None:
    turned = Identity(
        "train-irm1",
        dict(reversed(BASE.config.items())),
        MappingProxyType(dict(BASE.inputs)),
        dict(reversed(BASE.code.items())),
    )
    assert (turned, turned.id) == (BASE, BASE.id)
    assert len(BASE.id) == 20
    assert dataclasses.replace(BASE, config={"training.learning_rate": 0.0001, "px": (128, 32)}).id == BASE.id


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(BASE, step="train-irm2"),
        dataclasses.replace(BASE, config={**BASE.config, "training.learning_rate": 0.0002}),
        dataclasses.replace(BASE, config={**BASE.config, "new": None}),
        dataclasses.replace(BASE, inputs={"dataset": "9a" * 10}),
        dataclasses.replace(BASE, inputs={"data": "3f" * 10}),
        dataclasses.replace(BASE, code={**BASE.code, "diffbfr.ema": "cc"}),
    ],
)
def test_anything_that_may_change_the_result_changes_the_id(other: Identity) -> None:
    assert other.id != BASE.id


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(
            st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5), st.none()
        ),
    )
)
def test_an_id_survives_the_record(config: dict[str, object]) -> None:
    identity = dataclasses.replace(BASE, config=config)
    assert Identity(**json.loads(json.dumps(dataclasses.asdict(identity)))).id == identity.id


def test_a_step_name_that_is_no_folder_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\.\./etc"):
        dataclasses.replace(BASE, step="../etc")


def test_what_was_committed_is_found_again(store: ArtifactStore) -> None:
    assert store.find(BASE) is None
    record = make(store, BASE)
    assert store.find(BASE) == record
    assert store.by_id(BASE.id) == record
    assert store.latest("train-irm1") == record
    assert record.outputs["weights"] == OutputRef(
        "deep/weights.bin", 7, hashlib.sha256(b"weights").hexdigest()
    )


def test_an_unfinished_artifact_is_no_artifact(store: ArtifactStore) -> None:
    storage.write_atomic(storage.join(store.artifact_dir(BASE), "deep/weights.bin"), b"weights")
    assert store.find(BASE) is None
    assert decide(store, BASE).reason == "first run"


def test_an_output_that_was_not_written_cannot_be_committed(store: ArtifactStore) -> None:
    with pytest.raises(UsageError, match=r"absent\.bin is not there"):
        store.commit(BASE, {"weights": "absent.bin"}, {}, 0.0)
    assert store.find(BASE) is None


def test_a_finished_step_is_a_hit(store: ArtifactStore) -> None:
    make(store, BASE)
    decision = decide(store, BASE)
    assert (decision.action, decision.reason) == ("HIT", "nothing changed")


def test_a_missing_or_cut_output_is_a_reason_to_run(store: ArtifactStore) -> None:
    make(store, BASE)
    file = Path(store.artifact_dir(BASE), "deep", "weights.bin")
    file.write_bytes(b"cut")
    assert store.find(BASE) is None
    assert (decide(store, BASE).action, decide(store, BASE).reason) == (
        "RUN",
        "output weights has 3 bytes, recorded 7",
    )
    file.unlink()
    assert (decide(store, BASE).action, decide(store, BASE).reason) == ("RUN", "output weights is missing")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"config": {**BASE.config, "training.learning_rate": 0.0002}},
            "config training.learning_rate: 0.0001 -> 0.0002",
        ),
        ({"config": {**BASE.config, "px": (256, 64)}}, "config px: [128, 32] -> [256, 64]"),
        ({"config": {**BASE.config, "loss": "l1"}}, "config loss: absent -> l1"),
        ({"inputs": {"dataset": "9a" * 10}}, "input dataset: 3f3f3f3f3f3f -> 9a9a9a9a9a9a"),
        ({"code": {**BASE.code, "diffbfr.models.unet": "zz"}}, "code diffbfr.models.unet changed"),
        (
            {"code": {"diffbfr.models.unet": "aa", "diffbfr.new": "nn"}},
            "code diffbfr.ema is gone; code diffbfr.new is new",
        ),
        (
            {"config": {**BASE.config, "a": 1, "b": 2, "c": 3, "d": 4}},
            "config a: absent -> 1; config b: absent -> 2; config c: absent -> 3; and 1 more",
        ),
    ],
)
def test_the_plan_names_what_differs(store: ArtifactStore, change: dict[str, object], reason: str) -> None:
    make(store, BASE)
    decision = decide(store, dataclasses.replace(BASE, **change))  # type: ignore[arg-type]
    assert (decision.action, decision.reason) == ("RUN", reason)


def test_the_plan_compares_with_the_newest_record(store: ArtifactStore) -> None:
    make(store, BASE)
    make(store, dataclasses.replace(BASE, inputs={"dataset": "9a" * 10}))
    decision = decide(store, dataclasses.replace(BASE, inputs={"dataset": "bb" * 10}))
    assert decision.reason == "input dataset: 9a9a9a9a9a9a -> bbbbbbbbbbbb"


def test_a_record_that_is_no_record_is_named(store: ArtifactStore) -> None:
    storage.write_atomic(storage.join(store.artifact_dir(BASE), "record.json"), b"{")
    with pytest.raises(UsageError, match="cannot be read as a record"):
        store.find(BASE)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str | None = None


def test_a_configuration_flattens_to_dotted_paths() -> None:
    assert flatten(Outer(Inner())) == {"inner.rate": 0.5, "inner.sizes": [1, 2], "name": None}
    assert flatten(Inner(), "data") == {"data.rate": 0.5, "data.sizes": [1, 2]}


def test_planning_a_finished_run_of_many_outputs_is_quick(store: ArtifactStore) -> None:
    outputs = {}
    for number in range(300):
        storage.local_path(store.artifact_dir(BASE)).mkdir(parents=True, exist_ok=True)
        Path(store.artifact_dir(BASE), f"{number}.tar").write_bytes(b"x")
        outputs[str(number)] = OutputRef(f"{number}.tar", 1, "0" * 64)
    store.commit(BASE, outputs, {}, 0.0)
    started = time.process_time()
    for _ in range(10):
        assert decide(store, BASE).action == "HIT"
    assert time.process_time() - started < 1.0


def test_a_changed_byte_is_found_by_its_time_and_a_touched_file_is_read_once(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, BASE)
    file = Path(store.artifact_dir(BASE), "deep", "weights.bin")
    file.write_bytes(b"wEights")
    assert decide(store, BASE).reason.startswith("output weights has the digest ")
    file.write_bytes(b"weights")
    assert decide(store, BASE).action == "HIT"
    monkeypatch.setattr(storage, "digest", lambda uri: pytest.fail(f"{uri} was read again"))
    assert decide(store, BASE).action == "HIT"


def test_a_byte_that_changed_in_silence_is_found_by_a_thorough_look(store: ArtifactStore) -> None:
    record = make(store, BASE)
    file = Path(store.artifact_dir(BASE), "deep", "weights.bin")
    times = file.stat()
    file.write_bytes(b"wEights")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.corruption(record) == {}
    assert list(store.corruption(record, thorough=True)) == ["weights"]


def test_an_input_that_was_made_again_otherwise_is_a_reason_to_run(store: ArtifactStore) -> None:
    later = Identity("condition-irm1", {}, {"irm1": BASE.id, "photos": "c0ffee"}, {})
    first = make(store, BASE)
    assert make(store, later).sources == {"irm1": first.content}
    make(store, BASE)
    assert decide(store, later).action == "HIT"
    make(store, BASE, b"other")
    assert decide(store, later).reason.startswith("input irm1 was rebuilt with other content: ")
    store.clear(later)
    assert store.by_id(later.id) is None


def test_a_damaged_file_is_cleared_and_what_is_whole_stays(store: ArtifactStore) -> None:
    record = make(store, BASE)
    Path(store.artifact_dir(BASE), "deep", "weights.bin").write_bytes(b"wEights")
    Path(store.artifact_dir(BASE), "checkpoint").write_bytes(b"kept")
    store.clear(record.identity)
    assert decide(store, BASE).reason == "output weights is missing"
    assert Path(store.artifact_dir(BASE), "checkpoint").exists()


def test_a_bucket_holds_artifacts_as_a_disk_does(s3_bucket: str) -> None:
    store = ArtifactStore(f"{s3_bucket}/runs")
    record = make(store, BASE)
    assert store.find(BASE) == record
    assert decide(store, BASE).action == "HIT"
    storage.write_atomic(storage.join(store.artifact_dir(BASE), "deep/weights.bin"), b"wEights")
    assert decide(store, BASE).reason.startswith("output weights has the digest ")
    storage.remove_tree(storage.join(store.artifact_dir(BASE), "deep"))
    assert decide(store, BASE).reason == "output weights is missing"
