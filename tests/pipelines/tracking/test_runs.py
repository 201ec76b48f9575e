import threading
from collections.abc import Callable

import pytest

from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import Point, Run, begin_pipeline, begin_step, end_run, step_run


def status(registry: Registry, run_id: str) -> str:
    return str(registry.client.get_run(run_id).info.status)


def test_a_pipeline_run_has_a_child_a_step(registry: Registry) -> None:
    parent = begin_pipeline(registry, "smoke", "plan", {"recipe": "smoke"})
    shard, irm1 = (
        begin_step(parent, name, artifact * 20) for name, artifact in (("shard", "s"), ("irm1", "t"))
    )
    shard.log_params({"variants": 2, "faces": "synthetic:count=4"})
    shard.log_metrics({"seconds": 1.5})
    irm1.log_points([Point("loss", 8, 0.5, 1000), Point("loss", 16, 0.25, 2000)])
    for run in (shard, irm1, parent):
        end_run(run, "FINISHED")
    children = registry.client.search_runs(
        [registry.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'"
    )
    assert {child.info.run_name for child in children} == {"shard", "irm1"}
    assert {status(registry, run.run_id) for run in (parent, shard, irm1)} == {"FINISHED"}
    data = registry.client.get_run(shard.run_id).data
    assert data.params == {"variants": "2", "faces": "synthetic:count=4"}
    assert data.metrics == {"seconds": 1.5}
    assert [(m.step, m.value) for m in registry.client.get_metric_history(irm1.run_id, "loss")] == [
        (8, 0.5),
        (16, 0.25),
    ]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_marks_the_run_and_the_same_step_continues_it(
    registry: Registry, error: type[BaseException]
) -> None:
    first = begin_step(begin_pipeline(registry, "smoke", "plan"), "irm1", "t" * 20)
    first.log_points([Point("loss", 8, 0.5, 1000)])
    with pytest.raises(error), step_run(registry, "irm1", "t" * 20):
        raise error
    assert status(registry, first.run_id) == "FAILED"
    with step_run(registry, "irm1", "t" * 20) as again:
        again.log_points([Point("loss", 8, 0.5, 1000), Point("loss", 16, 0.25, 2000)])
    assert again.run_id == first.run_id
    assert status(registry, first.run_id) == "FINISHED"
    assert [m.step for m in registry.client.get_metric_history(first.run_id, "loss")] == [8, 16]


def test_a_finished_plan_run_again_is_a_new_run_and_a_failed_one_is_continued(registry: Registry) -> None:
    first = begin_pipeline(registry, "smoke", "plan")
    end_run(first, "FAILED")
    assert begin_pipeline(registry, "smoke", "plan") == first
    end_run(first, "FINISHED")
    assert begin_pipeline(registry, "smoke", "plan") != first


@pytest.mark.parametrize(
    ("first", "second"), [("/one", "/two"), ("/Ann's", "/Bob's photos"), ('/Ann\'s "best"', '/Bob\'s "best"')]
)
def test_two_roots_with_the_same_plan_have_parents_with_a_status_each(
    registry: Registry, first: str, second: str
) -> None:
    one, two = (begin_pipeline(registry, "smoke", "plan", {"diffbfr.root": root}) for root in (first, second))
    assert one != two
    end_run(one, "FINISHED")
    assert status(registry, two.run_id) == "RUNNING"
    assert begin_pipeline(registry, "smoke", "plan", {"diffbfr.root": second}) == two
    assert registry.client.get_run(two.run_id).data.tags["diffbfr.root"] == second


def test_a_step_and_the_mirror_open_one_run(registry: Registry) -> None:
    parent, together, opened = begin_pipeline(registry, "smoke", "plan"), threading.Barrier(2), list[Run]()

    def open_with(begin: Callable[[], Run]) -> None:
        together.wait()
        opened.append(begin())

    def as_the_step() -> Run:
        with step_run(registry, "register", "r" * 20, {"diffbfr.root": "/one"}) as run:
            return run

    ways = (as_the_step, lambda: begin_step(parent, "register", "r" * 20, {"diffbfr.root": "/one"}))
    threads = [threading.Thread(target=open_with, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened[0] == opened[1]
    assert registry.client.get_run(opened[0].run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_long_curve_goes_in_batches_and_arrives_whole(registry: Registry) -> None:
    points = [Point("loss", i, float(i), 1000 + i) for i in range(2300)]
    with step_run(registry, "train-irm1", "t" * 20) as run:
        run.log_points(points)
        run.log_points(points[:1500])
    assert len(registry.client.get_metric_history(run.run_id, "loss")) == 2300


def test_an_image_is_a_file_of_the_run(registry: Registry) -> None:
    with step_run(registry, "train-irm1", "t" * 20) as run:
        run.log_bytes("panels/first.png", b"png")
        run.log_bytes("report.html", b"<html>")
    assert [file.path for file in registry.client.list_artifacts(run.run_id, "panels")] == [
        "panels/first.png"
    ]
    assert "report.html" in [file.path for file in registry.client.list_artifacts(run.run_id)]


def test_a_long_value_is_cut_and_not_refused(registry: Registry) -> None:
    with step_run(registry, "train-irm1", "t" * 20) as run:
        run.log_params({"faces": "x" * 9000})
    assert len(registry.client.get_run(run.run_id).data.params["faces"]) == 6000


def test_a_step_is_one_run_under_any_plan_and_one_for_each_root(registry: Registry) -> None:
    one, two = (begin_pipeline(registry, "smoke", plan) for plan in ("plan-1", "plan-2"))
    first = begin_step(one, "train-irm1", "a" * 20, {"diffbfr.root": "/one"})
    again = begin_step(two, "train-irm1", "a" * 20, {"diffbfr.root": "/one"})
    other = begin_step(two, "train-irm1", "a" * 20, {"diffbfr.root": "/two"})
    assert first == again != other
    assert registry.client.get_run(first.run_id).data.tags["mlflow.parentRunId"] == two.run_id
