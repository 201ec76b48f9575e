"""The frozen hold-out: on which faces, how drawn and by which metrics cascades are compared before one takes
charge.

It is a tag of the registered model `diffbfr-cascade`, set by the first evaluation that is registered. Each
change of it is an entry of the audit log.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from pipelines.evaluation.scores import Evaluation, Protocol, metric_slug
from pipelines.registry.versions import CASCADE, model_tags
from pipelines.tracking.connection import Registry

TAG: Final = "diffbfr.holdout"


@dataclass(frozen=True)
class HoldOut:
    """`dataset` is the folder of the shards, `protocol` which faces of it are measured and how; `metrics`
    is metric -> version.
    """

    dataset: str
    protocol: Protocol
    metrics: Mapping[str, str]

    @property
    def id(self) -> str:
        """Its name in the audit log."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:20]

    def text(self) -> str:
        """It as a tag."""
        return json.dumps(asdict(self), sort_keys=True)


def holdout_of(evaluation: Evaluation, dataset: str) -> HoldOut:
    """The hold-out on which an evaluation was made."""
    return HoldOut(
        dataset, evaluation.protocol, {metric_slug(metric): metric.version for metric in evaluation.metrics}
    )


def read_holdout(registry: Registry) -> HoldOut | None:
    """The hold-out that the gate compares on; None before the first cascade was registered with scores."""
    text = model_tags(registry, CASCADE).get(TAG)
    if text is None:
        return None
    told = json.loads(text)
    protocol = told["protocol"]
    frozen = Protocol(
        **{**protocol, "seeds": tuple(protocol["seeds"]), "metrics": tuple(protocol["metrics"])}
    )
    return HoldOut(told["dataset"], frozen, told["metrics"])
