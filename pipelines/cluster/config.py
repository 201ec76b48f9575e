"""`ClusterConfig`: where work runs, checked when it is made."""

from dataclasses import dataclass

from diffbfr.errors import UsageError


@dataclass(frozen=True)
class ClusterConfig:
    """Where work runs; never part of an identity.

    - `num_workers=0` runs everything in this process.
    - `address=None` starts a Ray on this machine, otherwise that cluster is joined.
    - `cpus_per_worker=0` divides this machine's cores equally (1 on a joined cluster). Steps that do not
      depend on each other (TEM and IRM-1) run in parallel where the workers of both have room.
    - With `min_workers`, work begins with as few workers, and goes on with as few when machines are lost;
      more are added as they come, up to `num_workers`.
    - `recompute_px`: in training, blocks whose maps are this wide or wider are computed again in the backward
      pass. `micro_batch`: a rank holds at most so many images at once and accumulates their gradients. Both
      save memory, cost time and do not change the result.
    - `compile` passes the networks to torch.compile.
    - `hang_s`: ranks that finish no step for this time (or for five usual steps, if longer) are replaced, and
      so is a worker that was stopped for so long.
    - `task_limit_s`: a worker whose task takes longer than this (an actor: or than five times the longest so
      far, if longer) is replaced, and the task retried.
    """

    num_workers: int = 2
    min_workers: int | None = None
    address: str | None = None
    cpus_per_worker: int = 0
    recompute_px: int | None = None
    micro_batch: int | None = None
    compile: bool = False
    hang_s: float = 30.0
    task_limit_s: float = 7200.0

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "recompute_px"):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"cluster.{name} is {getattr(self, name)}; expected 0 or more; set it so")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            most = f"1 to cluster.num_workers={self.num_workers}"
            raise UsageError(
                f"cluster.min_workers is {self.min_workers}; expected {most}, or none for exactly those"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(
                f"cluster.micro_batch is {self.micro_batch}; expected at least 1, or none for all at once"
            )
        for name in ("hang_s", "task_limit_s"):
            if getattr(self, name) <= 0:
                raise UsageError(
                    f"cluster.{name} is {getattr(self, name)}; expected a positive number of seconds"
                )
