"""The model registry: which models were trained, from what, and which cascade is the champion.

`registration` registers models (`packaging`: the uploaded files; `pyfunc_model`: the code that serves a
cascade), `versions` finds them, `fetching` brings their files here. `promotion` decides whether a candidate
becomes champion, from `evaluations` on the `holdout`. `aliases` changes a model under its `lock` and writes
each change to the `audit_log`. `fsck` checks everything, `gc` removes what nothing references. MLflow is
imported on first use, not with this package.
"""

from pipelines.registry.aliases import freeze_holdout, recover_all
from pipelines.registry.audit_log import Action, list_actions, log_problems
from pipelines.registry.evaluations import is_measured, read_faces, record_evaluation
from pipelines.registry.fetching import Resolved, fetch, resolve
from pipelines.registry.fsck import RegistryProblem, fsck
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
from pipelines.registry.registration import check_parent, register_cascade, register_stage
from pipelines.registry.versions import (
    ALIASES,
    CASCADE,
    MODELS,
    Lineage,
    ModelVersion,
    get_version,
    list_versions,
    version_with_alias,
)

__all__ = [
    "ALIASES",
    "CASCADE",
    "MODELS",
    "Action",
    "Comparison",
    "HoldOut",
    "Lineage",
    "ModelVersion",
    "Promotion",
    "RegistryProblem",
    "RegressionError",
    "Removal",
    "Resolved",
    "check_parent",
    "collect_garbage",
    "fetch",
    "format_comparisons",
    "freeze_holdout",
    "fsck",
    "get_version",
    "holdout_of",
    "is_measured",
    "list_actions",
    "list_versions",
    "log_problems",
    "promote",
    "read_faces",
    "read_holdout",
    "record_evaluation",
    "recover_all",
    "register_cascade",
    "register_stage",
    "resolve",
    "rollback",
    "version_with_alias",
]
