"""Measure a cascade on held-out faces: the tasks, spread over the cluster, and what they come to."""

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.cluster import Cluster
    from pipelines.recipes import EvaluateConfig
    from pipelines.steps.evaluate import Mode
    from pipelines.steps.pinned_cascade import PinnedCascade
    from pipelines.steps.scores import Evaluation


def measure(cluster: "Cluster", cascade: "PinnedCascade", dataset: str, config: "EvaluateConfig", mode: "Mode") -> "Evaluation":
    """Restore the held-out faces of a dataset, never trained on, and measure every output of Algorithm 1."""
    from pipelines.manifest import open_dataset
    from pipelines.steps.evaluate import EvaluateTask, identity_weights, make_evaluator, plan_evaluation, squeezenet_weights
    from pipelines.steps.scores import summarise

    opened = open_dataset(dataset)
    template = EvaluateTask(
        index=0,
        dataset=dataset,
        cascade=cascade,
        keys=tuple(opened.keys(config.split))[: config.max_faces],
        variant=config.variant,
        seeds=config.seeds,
        mode=mode,
        batch=config.batch,
        squeezenet=squeezenet_weights(config.squeezenet),
        identity=identity_weights(config.identity),
    )
    tasks = plan_evaluation(template, config.num_panels, keys_per_task=16)
    reports = cluster.map_actors(
        partial(make_evaluator, tasks[0]), tasks, label="evaluate", unit="faces", weight=lambda task: len(task.keys)
    )
    return summarise(tasks, reports, opened.info.content_id, config.split, opened.info.hq_px)
