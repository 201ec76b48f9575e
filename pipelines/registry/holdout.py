"""The frozen hold-out: the faces and metrics on which a candidate is compared with the champion.

It is a tag of the registered model `diffbfr-cascade`, set by the first evaluation that is registered. Each
change of it is an entry of the audit log.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from diffbfr.errors import UsageError, one_line
from pipelines.evaluation.scores import Evaluation, Protocol, metric_slug
from pipelines.registry.versions import CASCADE, model_tags, parse_tag
from pipelines.tracking.connection import Registry

TAG: Final = "diffbfr.holdout"


@dataclass(frozen=True)
class HoldOut:
    """A dataset folder, which of its faces are evaluated and how (`protocol`), and metric -> version."""

    dataset: str
    protocol: Protocol
    metrics: Mapping[str, str]

    @property
    def id(self) -> str:
        """20 hex digits that identify it in the audit log."""
        return hashlib.sha256(self.to_tag().encode()).hexdigest()[:20]

    def to_tag(self) -> str:
        """Value of the tag that `read_holdout` reads."""
        return json.dumps(asdict(self), sort_keys=True)


def holdout_of(evaluation: Evaluation, dataset: str) -> HoldOut:
    """The hold-out on which an evaluation was made."""
    metrics = {metric_slug(metric): metric.version for metric in evaluation.metrics}
    return HoldOut(dataset, evaluation.protocol, metrics)


def read_holdout(registry: Registry) -> HoldOut | None:
    """The hold-out in force; None before the first cascade was registered with scores."""
    tag = model_tags(registry, CASCADE).get(TAG)
    if tag is None:
        return None
    values = parse_tag("the hold-out", tag)
    try:
        protocol = values["protocol"]
        lists = {name: tuple(protocol[name]) for name in ("seeds", "metrics")}
        return HoldOut(str(values["dataset"]), Protocol(**{**protocol, **lists}), dict(values["metrics"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the hold-out in the registry is damaged ({one_line(error)}); expected dataset, protocol and "
            "metrics; choose one with `diffbfr models holdout DATASET`"
        ) from error
