"""Trainings in several processes over gloo; here because a spawned process must be able to import what it runs."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import distributed as dist

from diffbfr.training.loop import Run, StepMetrics, train

Told = tuple[list[StepMetrics], str]
"""What a rank reported of one training, and how it was refused ("" if it was not)."""


class StoppedError(Exception):
    """Ends a training where the test wants it."""


def train_in_processes(trainings: Sequence[Sequence[Run]], meeting: Path, stop_after: int | None = None) -> list[list[Told]]:
    """Run trainings one after another, each given as one run a rank; returns what each rank told of each.

    All ranks of a training stop after so many steps, if that is given.
    """
    num_ranks = len(trainings[0])
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(rank, num_ranks, trainings, meeting, results, stop_after)) for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = dict(results.get() for _ in processes)
    return [[found[rank][place] for rank in range(num_ranks)] for place in range(len(trainings))]


def _rank(
    rank: int,
    num_ranks: int,
    trainings: Sequence[Sequence[Run]],
    meeting: Path,
    results: "multiprocessing.SimpleQueue[object]",
    stop_after: int | None,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=num_ranks)
    told: list[Told] = []
    for runs in trainings:
        reports: list[StepMetrics] = []
        steps: list[int] = []

        def alive(step: int, steps: list[int] = steps) -> None:
            steps.append(step)
            if len(steps) == stop_after:
                raise StoppedError

        try:
            result = train(runs[rank], report=reports.append, alive=alive, report_every_s=0)
            assert reports == [] or reports[-1].loss == result.loss
            told.append((reports, ""))
        except StoppedError:
            told.append((reports, "stopped"))
        except ValueError as error:
            told.append((reports, str(error)))
    results.put((rank, told))
    dist.destroy_process_group()
