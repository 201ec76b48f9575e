"""The only room that imports Ray: the same functions run in this process, on this machine, or on a cluster.

`session.py` starts and stops Ray as `config.py` says, or joins one (`joining.py`). `pool.py` runs tasks and
actors, `trainer.py` a training, which `watchdog.py` and `monitor.py` watch. `orphans.py` ends what Ray leaves
behind. Importing this costs no Ray.
"""

from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.session import Cluster

__all__ = ["Cluster", "ClusterConfig"]
