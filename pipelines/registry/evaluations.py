"""Evaluations of versions: means as tags, and the scores of every face as a table in the version's run.

A version is one content and a protocol is one way to evaluate it, so each pair is evaluated once. The tag
`scores.PROTOCOL` of a version holds metric -> metric version and the SHA-256 of the table.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, Final

from diffbfr.errors import DiffBFRError
from pipelines.evaluation.scores import Evaluation, faces, means, metric_slug
from pipelines.registry.holdout import HoldOut
from pipelines.registry.versions import ModelVersion, parse_tag
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import Run

FaceScores = Mapping[str, Mapping[str, float]]
"""Metric -> face -> score."""
_SUBJECT: Final = "tem"


def record_evaluation(registry: Registry, version: ModelVersion, evaluation: Evaluation) -> None:
    """Write the scores of every face to the version's run, then the means and the digest to its tags."""
    table = _faces_csv(evaluation)
    Run(registry, version.run_id).log_bytes(_faces_path(version, evaluation.protocol.digest), table)
    for name, value in evaluation_tags(evaluation, hashlib.sha256(table).hexdigest()).items():
        registry.client.set_model_version_tag(version.name, str(version.version), name, value)


def evaluation_tags(evaluation: Evaluation, sha256: str = "") -> dict[str, str]:
    """Tags of a version: means and protocol of its newest evaluation; `sha256` is that of the score table."""
    protocol = evaluation.protocol.digest
    tags = {f"eval.{name}": repr(value) for name, value in means(evaluation).items()}
    scores = {
        "metrics": {metric_slug(metric): metric.version for metric in evaluation.metrics},
        "sha256": sha256,
    }
    return tags | {"eval.protocol": protocol, _scores_tag(protocol): json.dumps(scores, sort_keys=True)}


def recorded_metrics(version: ModelVersion, protocol: str) -> Mapping[str, str]:
    """Metric -> metric version of the scores recorded under a protocol; empty if there are none."""
    metrics: Mapping[str, str] = _scores(version, protocol).get("metrics", {})
    return metrics


def is_measured(version: ModelVersion, holdout: HoldOut) -> bool:
    """Whether the version has scores by every metric of the hold-out, in the hold-out's metric version."""
    return holdout.metrics.items() <= recorded_metrics(version, holdout.protocol.digest).items()


def read_faces(registry: Registry, version: ModelVersion, protocol: str) -> FaceScores:
    """The scores that `record_evaluation` wrote; DiffBFRError if the table was changed since."""
    path = _faces_path(version, protocol)
    table = Run(registry, version.run_id).read_bytes(path)
    recorded = _scores(version, protocol).get("sha256", "")
    if hashlib.sha256(table).hexdigest() != recorded:
        raise DiffBFRError(
            f"{version.ref}: {path} in its run was changed; expected sha256 {recorded[:12]}; run the same "
            "command again"
        )
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    scores = {}
    for metric in [name for name in rows[0] if name != "key"]:
        scores[metric] = {row["key"]: float(row[metric]) for row in rows}
    return scores


def _scores(version: ModelVersion, protocol: str) -> dict[str, Any]:
    return parse_tag(f"the scores of {version.ref}", version.tags.get(_scores_tag(protocol), "{}"))


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
