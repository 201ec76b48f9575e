import contextlib

from pipelines.registry import Point, Registry, begin_pipeline, begin_step, pipeline_run, step_run


def status(registry: Registry, run_id: str) -> str:
    return str(registry.client.get_run(run_id).info.status)


def test_a_pipeline_run_has_a_child_a_step(registry: Registry) -> None:
    with pipeline_run(registry, "smoke", "plan", {"recipe": "smoke"}) as parent:
        with step_run(parent, "shard", "s" * 20) as shard:
            shard.log_params({"variants": 2, "faces": "synthetic:count=4"})
            shard.log_metrics({"seconds": 1.5})
        with step_run(parent, "irm1", "t" * 20) as irm1:
            irm1.log_points([Point("loss", 8, 0.5, 1000), Point("loss", 16, 0.25, 2000)])
    children = registry.client.search_runs([registry.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert {child.info.run_name for child in children} == {"shard", "irm1"}
    assert {status(registry, run.run_id) for run in (parent, shard, irm1)} == {"FINISHED"}
    data = registry.client.get_run(shard.run_id).data
    assert data.params == {"variants": "2", "faces": "synthetic:count=4"}
    assert data.metrics == {"seconds": 1.5}
    assert [(m.step, m.value) for m in registry.client.get_metric_history(irm1.run_id, "loss")] == [(8, 0.5), (16, 0.25)]


def test_an_exception_marks_the_runs_and_the_same_plan_continues_them(registry: Registry) -> None:
    with (
        contextlib.suppress(ZeroDivisionError),
        pipeline_run(registry, "smoke", "plan") as parent,
        step_run(parent, "irm1", "t" * 20) as child,
    ):
        child.log_points([Point("loss", 8, 0.5, 1000)])
        raise ZeroDivisionError
    assert status(registry, parent.run_id) == status(registry, child.run_id) == "FAILED"
    with pipeline_run(registry, "smoke", "plan") as again, step_run(again, "irm1", "t" * 20) as child_again:
        child_again.log_points([Point("loss", 8, 0.5, 1000), Point("loss", 16, 0.25, 2000)])
    assert (again.run_id, child_again.run_id) == (parent.run_id, child.run_id)
    assert status(registry, parent.run_id) == "FINISHED"
    assert [m.step for m in registry.client.get_metric_history(child.run_id, "loss")] == [8, 16]


def test_a_finished_plan_run_again_is_a_run_of_its_own(registry: Registry) -> None:
    with pipeline_run(registry, "smoke", "plan") as first:
        pass
    with pipeline_run(registry, "smoke", "plan") as second:
        pass
    assert first.run_id != second.run_id


def test_a_long_curve_goes_in_batches_and_arrives_whole(registry: Registry) -> None:
    points = [Point("loss", i, float(i), 1000 + i) for i in range(2300)]
    with pipeline_run(registry, "smoke", "plan") as run:
        run.log_points(points)
        run.log_points(points[:1500])
    assert len(registry.client.get_metric_history(run.run_id, "loss")) == 2300


def test_a_picture_is_a_file_of_the_run(registry: Registry) -> None:
    with pipeline_run(registry, "smoke", "plan") as run:
        run.log_bytes("panels/first.png", b"png")
        run.log_bytes("report.html", b"<html>")
    assert [file.path for file in registry.client.list_artifacts(run.run_id, "panels")] == ["panels/first.png"]
    assert "report.html" in [file.path for file in registry.client.list_artifacts(run.run_id)]


def test_a_long_value_is_cut_and_not_refused(registry: Registry) -> None:
    with pipeline_run(registry, "smoke", "plan") as run:
        run.log_params({"faces": "x" * 9000})
    assert len(registry.client.get_run(run.run_id).data.params["faces"]) == 6000


def test_a_step_is_one_run_under_any_plan_and_one_for_each_root(registry: Registry) -> None:
    one, two = (begin_pipeline(registry, "smoke", plan) for plan in ("plan-1", "plan-2"))
    first = begin_step(one, "train-irm1", "a" * 20, {"diffbfr.root": "/one"})
    again = begin_step(two, "train-irm1", "a" * 20, {"diffbfr.root": "/one"})
    other = begin_step(two, "train-irm1", "a" * 20, {"diffbfr.root": "/two"})
    assert first == again != other
    assert registry.client.get_run(first.run_id).data.tags["mlflow.parentRunId"] == two.run_id
