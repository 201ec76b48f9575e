"""Trainings in several processes over gloo; here because another process must be able to import what it
runs.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from unittest.mock import patch

import torch
from torch import distributed as dist

from diffbfr.training.batches import Batch, PositionLoader
from diffbfr.training.loop import Run, StepMetrics, train
from diffbfr.training.train_step import TrainStep, UpdateResult
from tests import forks

Told = tuple[list[StepMetrics], str]
"""What a rank reported of one training, and how it was refused ("" if it was not)."""
Steps = list[tuple[int, list[str]]]
"""The steps that a process took, and the keys of its faces in each."""


class StoppedError(Exception):
    """Ends a training where the test wants it."""


@dataclass(frozen=True)
class Trouble:
    """What befalls a training: all ranks stop after so many steps; one rank finds only NaN in the images
    of one step.
    """

    stop_after: int | None = None
    nan_rank: int | None = None
    nan_step: int | None = None


def train_in_processes(
    trainings: Sequence[Sequence[Run]], meeting: Path, troubles: Sequence[Trouble] = ()
) -> list[list[Told]]:
    """Run trainings one after another, each given as one run a rank; returns what each rank told of each.

    `troubles` are those of the first trainings; the others have none. `steps_of` tells which faces each rank
    saw.
    """
    num_ranks = len(trainings[0])
    context = forks.context()
    results = context.SimpleQueue()
    troubled = list(zip_longest(trainings, troubles, fillvalue=Trouble()))
    processes = [
        context.Process(target=_rank, args=(rank, num_ranks, troubled, meeting, results))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = dict(results.get() for _ in processes)
    return [[found[rank][place] for rank in range(num_ranks)] for place in range(len(trainings))]


def steps_of(meeting: Path, rank: int) -> Steps:
    """All steps that a rank of `train_in_processes` took."""
    return [(step, keys) for step, keys in json.loads(_steps_file(meeting, rank).read_text())]


@contextmanager
def noting_steps(steps: Steps, nan_step: int | None = None) -> Iterator[None]:
    """Note the steps that this process takes, and make the images of one of them NaN."""
    keys: dict[int, str] = {}
    read, take = PositionLoader._sample_at, TrainStep.step

    def noting(loader: PositionLoader, key: str, position: int) -> object:
        sample = read(loader, key, position)
        keys[sample.dropout_seed] = key
        return sample

    def taking(train_step: TrainStep, share: Batch, step: int) -> UpdateResult:
        steps.append((step, [keys[seed] for seed in share.dropout_seeds.tolist()]))
        if step == nan_step:
            share = replace(share, y_0=torch.full_like(share.y_0, torch.nan))
        return take(train_step, share, step)

    with patch.object(PositionLoader, "_sample_at", noting), patch.object(TrainStep, "step", taking):
        yield


def _steps_file(meeting: Path, rank: int) -> Path:
    return meeting.with_name(f"{meeting.name}-steps-{rank}.json")


def _rank(
    rank: int,
    num_ranks: int,
    trainings: Sequence[tuple[Sequence[Run], Trouble]],
    meeting: Path,
    results: "SimpleQueue[object]",
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=num_ranks)
    told: list[Told] = []
    steps: Steps = []
    for runs, trouble in trainings:
        reports: list[StepMetrics] = []
        taken = len(steps)

        def heartbeat(step: int, taken: int = taken, trouble: Trouble = trouble) -> None:
            if len(steps) - taken == trouble.stop_after:
                raise StoppedError

        try:
            with noting_steps(steps, trouble.nan_step if rank == trouble.nan_rank else None):
                result = train(runs[rank], report=reports.append, heartbeat=heartbeat, report_every_s=0)
            assert reports == [] or reports[-1].loss == result.loss
            told.append((reports, ""))
        except StoppedError:
            told.append((reports, "stopped"))
        except ValueError as error:
            told.append((reports, str(error)))
    _steps_file(meeting, rank).write_text(json.dumps(steps))
    results.put((rank, told))
    dist.destroy_process_group()
