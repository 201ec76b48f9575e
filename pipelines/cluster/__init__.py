"""The door to Ray: the same plain functions in this process, on this machine's cores, or on a cluster.

`session.py` starts and stops Ray, `pool.py` runs tasks and actors, `fit.py` runs a training. Importing this
costs no Ray.
"""

from pipelines.cluster.session import Cluster, ClusterConfig

__all__ = ["Cluster", "ClusterConfig"]
