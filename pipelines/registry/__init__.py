"""The model registry: what was trained, from what, and which cascade is in charge. The one door to MLflow.

`connection` says where the registry is, `runs` mirrors a pipeline run, `versions` registers and finds models
(`packing`: what is uploaded; `digests`: when two are one; `served_cascade`: the code inside a cascade
version). `gate` says who takes charge, by what `measurements` keeps of the `holdout`; `moves` changes the
aliases (`turns`: one at a time; `actions`: who and why, and what a crash left). `audit` looks for damage,
`garbage` removes what nobody names. MLflow is imported on first use: this package alone costs nothing.
"""

from diffbfr.digests import model_digest
from pipelines.registry.aliases import freeze_holdout, recover_all
from pipelines.registry.audit_log import Action, list_actions, log_problems
from pipelines.registry.evaluations import is_measured, read_faces, record_evaluation
from pipelines.registry.fsck import Finding, fsck
from pipelines.registry.gc import Removal, collect_garbage
from pipelines.registry.holdout import HoldOut, holdout_of, read_holdout
from pipelines.registry.promotion import (
    Comparison,
    Promotion,
    RegressionError,
    format_comparisons,
    promote,
    rollback,
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
    version_with_alias,
)
from pipelines.tracking.connection import Registry, open_registry
from pipelines.tracking.runs import (
    Point,
    Run,
    Status,
    begin_pipeline,
    begin_step,
    end_run,
    find_step,
    is_refused,
    run_status,
    step_run,
    unfinished_runs,
)

__all__ = [
    "ALIASES",
    "CASCADE",
    "MODELS",
    "Action",
    "Comparison",
    "Finding",
    "HoldOut",
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
    "freeze_holdout",
    "fsck",
    "get_version",
    "holdout_of",
    "is_measured",
    "is_refused",
    "list_actions",
    "list_versions",
    "log_problems",
    "model_digest",
    "open_registry",
    "promote",
    "read_faces",
    "read_holdout",
    "record_evaluation",
    "recover_all",
    "register_cascade",
    "register_stage",
    "resolve",
    "rollback",
    "run_status",
    "step_run",
    "unfinished_runs",
    "version_with_alias",
]
