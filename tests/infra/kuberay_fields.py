"""The fields of `ray.io/v1` that the manifests may use, with their types, for the lack of the CRDs here.

From the Go types of the operator (`ray-operator/apis/ray/v1`), versions 1.5 and 1.6. `POD` is a
PodTemplateSpec, which `kubernetes-validate` checks. A field that a manifest uses and this table lacks fails
the test: look it up, then add it.
"""

from typing import Any, Final

MINIMUM_OPERATOR: Final = "1.5.1"
"""The first version with `authOptions`."""

POD: Final = "PodTemplateSpec"
STRINGS: Final = "map[string]string"

HEAD_GROUP: Final = {
    "serviceType": str,
    "rayStartParams": STRINGS,
    "template": POD,
}
WORKER_GROUP: Final = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "numOfHosts": int,
    "idleTimeoutSeconds": int,
    "suspend": bool,
    "rayStartParams": STRINGS,
    "template": POD,
}
CLUSTER: Final[dict[str, Any]] = {
    "rayVersion": str,
    "enableInTreeAutoscaling": bool,
    "suspend": bool,
    "authOptions": {"mode": ("disabled", "token")},
    "headGroupSpec": HEAD_GROUP,
    "workerGroupSpecs": [WORKER_GROUP],
}
JOB: Final[dict[str, Any]] = {
    "entrypoint": str,
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "suspend": bool,
    "rayClusterSpec": CLUSTER,
    "submitterConfig": {"backoffLimit": int},
    "submitterPodTemplate": POD,
}
KINDS: Final = {"RayJob": JOB, "RayCluster": CLUSTER}

REQUIRED: Final = {
    "RayJob": ("entrypoint", "rayClusterSpec"),
    "RayCluster": ("headGroupSpec",),
}
REQUIRED_IN_GROUP: Final = (
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
)


def mistakes(value: Any, expected: Any, path: str) -> list[str]:
    """What in `value` the table does not allow, one line each."""
    if expected is POD:
        return [] if isinstance(value, dict) else [f"{path} is no pod template"]
    if expected is STRINGS:
        return [
            f"{path}.{key} is {item!r}, no string" for key, item in value.items() if not isinstance(item, str)
        ]
    if isinstance(expected, list):
        lines = []
        for i, item in enumerate(value):
            lines += mistakes(item, expected[0], f"{path}[{i}]")
        return lines
    if isinstance(expected, dict):
        lines = [f"{path}.{key} is not in the table" for key in value if key not in expected]
        for key in value:
            if key in expected:
                lines += mistakes(value[key], expected[key], f"{path}.{key}")
        return lines
    if isinstance(expected, tuple):
        return [] if value in expected else [f"{path} is {value!r}, expected one of {expected}"]
    return [] if type(value) is expected else [f"{path} is {value!r}, expected {expected.__name__}"]
