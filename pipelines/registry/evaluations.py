"""What was measured of a version: means for people, and the scores of every face for the gate, kept by
protocol.

A version is one content and a protocol is one way to measure, so scores are taken once: the tag
`scores.PROTOCOL` of a version says by which metrics, in which version, and gives the digest of the table in
its run.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Final

from diffbfr.errors import DiffBFRError
from pipelines.evaluation.scores import Evaluation, faces, means, metric_slug
from pipelines.registry.holdout import HoldOut
from pipelines.registry.versions import ModelVersion
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import Run

FaceScores = Mapping[str, Mapping[str, float]]
"""Metric -> face -> score."""
_SUBJECT: Final = "tem"


def record_evaluation(registry: Registry, version: ModelVersion, evaluation: Evaluation) -> None:
    """Keep the scores of every face in the version's run, then say on the version that they are there,
    with the means.
    """
    table = _faces_csv(evaluation)
    Run(registry, version.run_id).log_bytes(_faces_path(version, evaluation.protocol.digest), table)
    for name, value in evaluation_tags(evaluation, hashlib.sha256(table).hexdigest()).items():
        registry.client.set_model_version_tag(version.name, str(version.version), name, value)


def evaluation_tags(evaluation: Evaluation, sha256: str = "") -> dict[str, str]:
    """Means and protocol of the newest evaluation as tags of a version, and what is kept of it."""
    tags = {f"eval.{name}": repr(value) for name, value in means(evaluation).items()} | {
        "eval.protocol": evaluation.protocol.digest
    }
    kept = {
        "metrics": {metric_slug(metric): metric.version for metric in evaluation.metrics},
        "sha256": sha256,
    }
    return tags | {_scores_tag(evaluation.protocol.digest): json.dumps(kept, sort_keys=True)}


def kept_metrics(version: ModelVersion, protocol: str) -> Mapping[str, str]:
    """Metric -> its version, of the scores that are kept by a protocol; empty if there are none."""
    metrics: Mapping[str, str] = json.loads(version.tags.get(_scores_tag(protocol), "{}")).get("metrics", {})
    return metrics


def is_measured(version: ModelVersion, holdout: HoldOut) -> bool:
    """Whether every metric of the hold-out is there, in the version that the hold-out names."""
    return holdout.metrics.items() <= kept_metrics(version, holdout.protocol.digest).items()


def read_faces(registry: Registry, version: ModelVersion, protocol: str) -> FaceScores:
    """The scores that `record_evaluation` kept; DiffBFRError if they were changed since."""
    path = _faces_path(version, protocol)
    table = Run(registry, version.run_id).read_bytes(path)
    recorded = json.loads(version.tags[_scores_tag(protocol)])["sha256"]
    if hashlib.sha256(table).hexdigest() != recorded:
        raise DiffBFRError(
            f"{version.ref}: {path} in its run was changed; expected sha256 {recorded[:12]}; run the same "
            "command again"
        )
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    return {metric: {row["key"]: float(row[metric]) for row in rows} for metric in rows[0] if metric != "key"}


def _scores_tag(protocol: str) -> str:
    return f"scores.{protocol}"


def _faces_path(version: ModelVersion, protocol: str) -> str:
    return f"evaluation/{protocol}/{version.name}-{version.version}.csv"


def _faces_csv(evaluation: Evaluation) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", *(metric_slug(metric) for metric in evaluation.metrics)])
    writer.writerows([key, *map(repr, values)] for key, values in faces(evaluation, _SUBJECT).items())
    return text.getvalue().encode()
