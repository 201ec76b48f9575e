"""The model registry: what was trained, from what, and which cascade is in charge. The one door to MLflow.

`connection` says where the registry is, `runs` mirrors a pipeline run, `versions` registers and finds models, `gate` moves the aliases
(`turns`: one at a time; `actions`: who and why), `audit` looks for damage, `garbage` removes what nobody names,
`digests` says when two models are one, `served_cascade` is the code inside a cascade version.
MLflow is imported on first use: this package alone costs nothing.
"""

from pipelines.registry.actions import Action, list_actions
from pipelines.registry.audit import Finding, fsck
from pipelines.registry.connection import Registry, open_registry
from pipelines.registry.digests import model_digest
from pipelines.registry.garbage import Removal, collect_garbage
from pipelines.registry.gate import Comparison, Promotion, RegressionError, format_comparisons, promote, record_evaluation, rollback
from pipelines.registry.runs import (
    Point,
    Run,
    Status,
    begin_pipeline,
    begin_step,
    end_run,
    find_step,
    is_refused,
    pipeline_run,
    run_status,
    step_run,
    unfinished_runs,
)
from pipelines.registry.versions import (
    ALIASES,
    CASCADE,
    MODELS,
    Lineage,
    ModelVersion,
    Resolved,
    fetch,
    get_version,
    list_versions,
    register_cascade,
    register_stage,
    resolve,
)

__all__ = [
    "ALIASES",
    "CASCADE",
    "MODELS",
    "Action",
    "Comparison",
    "Finding",
    "Lineage",
    "ModelVersion",
    "Point",
    "Promotion",
    "Registry",
    "RegressionError",
    "Removal",
    "Resolved",
    "Run",
    "Status",
    "begin_pipeline",
    "begin_step",
    "collect_garbage",
    "end_run",
    "fetch",
    "find_step",
    "format_comparisons",
    "fsck",
    "get_version",
    "is_refused",
    "list_actions",
    "list_versions",
    "model_digest",
    "open_registry",
    "pipeline_run",
    "promote",
    "record_evaluation",
    "register_cascade",
    "register_stage",
    "resolve",
    "rollback",
    "run_status",
    "step_run",
    "unfinished_runs",
]
