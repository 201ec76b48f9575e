"""The simulated scheduler against a real restoration on two workers of Ray, one of which is killed."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from diffbfr.cascade import packaged_cascade
from diffbfr.images import encode_png
from diffbfr.synthetic import render_face
from pipelines.cluster import Cluster
from pipelines.execution.model_ref import pin_model
from pipelines.restoration.work import WorkItem
from pipelines.sources import open_source
from pipelines.steps.restore import BatchReport, RestoreTask, RestoreWorker
from tests.benchmarks.scale.bucket import Bucket
from tests.benchmarks.scale.restoring import Archive, Fleet, simulate
from tests.pipelines.restore_requests import make_request

PHOTOS, UNIT_SIZE, KILLER, KILLED_AFTER_S = 16, 2, 3, 1.0


@dataclass(frozen=True)
class Record:
    """One try of a unit: the process, the unit, and when it began (with the loading before it) and ended."""

    process: int
    unit: int
    begin: float
    end: float


class TimedWorker:
    """A `RestoreWorker` that notes its times; at the first try of the unit `KILLER` its process dies."""

    def __init__(self, make: Callable[[], RestoreWorker], notes: str) -> None:
        self._begin = time.time()
        self._worker = make()
        self._notes = Path(notes)

    def __call__(self, task: RestoreTask) -> BatchReport:
        begin, self._begin = self._begin or time.time(), 0.0
        if task.index == KILLER and not (self._notes / "killed").exists():
            (self._notes / "killed").write_text(str(begin))
            time.sleep(KILLED_AFTER_S)
            os._exit(1)
        report = self._worker(task)
        record = {"process": os.getpid(), "unit": task.index, "begin": begin, "end": time.time()}
        (self._notes / f"unit-{task.index}.json").write_text(json.dumps(record))
        return report


@pytest.mark.slow
@pytest.mark.cluster
def test_a_real_restoration_takes_as_long_as_the_simulated_one(cluster: Cluster, tmp_path: Path) -> None:
    for seed in range(PHOTOS):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{seed:02d}.png").write_bytes(encode_png(render_face(seed, 64).pixels))
    source = open_source(str(tmp_path / "photos"))
    items = [WorkItem(ref, f"{ref.name}.png") for ref in source.refs()]
    units = [items[start : start + UNIT_SIZE] for start in range(0, PHOTOS, UNIT_SIZE)]
    tasks = [
        RestoreTask(
            index, source, tuple(unit), str(tmp_path / "restored"), make_request(batch_faces=UNIT_SIZE)
        )
        for index, unit in enumerate(units)
    ]
    notes = tmp_path / "notes"
    notes.mkdir()
    make = partial(TimedWorker, partial(RestoreWorker, pin_model(packaged_cascade())), str(notes))

    started = time.time()
    reports = cluster.map_actors(make, tasks, label="restore")
    took = time.time() - started
    assert [len(report.outcomes) for report in reports] == [UNIT_SIZE] * len(units)

    records = [Record(**json.loads(file.read_text())) for file in sorted(notes.glob("unit-*.json"))]
    seconds = {record.unit: record.end - record.begin for record in records}
    load_s = min(record.begin for record in records) - started
    killed_at = float((notes / "killed").read_text()) + KILLED_AFTER_S
    known = {record.process for record in records if record.begin < killed_at}
    came = min(record.begin for record in records if record.process not in known)

    simulated = simulate(
        Fleet(2, load_s=load_s, replacement_s=max(0.0, came - killed_at - load_s)),
        Archive(PHOTOS, UNIT_SIZE, kills_once=((KILLER, KILLED_AFTER_S),)),
        Bucket(latency_s=0.0),
        duration=seconds.__getitem__,
    )
    print(f"real {took:.1f} s, simulated {simulated.seconds:.1f} s, load {load_s:.1f} s")
    assert simulated.deaths == 1
    assert simulated.failed == 0
    assert simulated.seconds == pytest.approx(took, rel=0.15)
