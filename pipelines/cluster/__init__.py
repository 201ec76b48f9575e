"""The only room that imports Ray: the same functions run in this process, on this machine, or on a cluster.

`session.py` starts and stops Ray, `pool.py` runs tasks and actors, `trainer.py` runs a training, which
`watchdog.py` and `monitor.py` watch. `orphans.py` ends what a Ray leaves behind. Importing this costs no Ray.
"""

from pipelines.cluster.session import Cluster, ClusterConfig

__all__ = ["Cluster", "ClusterConfig"]
