"""Ctrl-C once finishes what was begun, twice stops at once; tasks are made as they are begun."""

import os
import signal
from collections.abc import Iterator

import pytest

from pipelines.cluster import Cluster, ClusterConfig


def run(interrupts: dict[int, int], made: list[int], ended: list[int]) -> None:
    """Three tasks in this process, which gets so many signals during each."""

    def work(task: int) -> int:
        assert made[-1] == task, "no task is made ahead"
        for _ in range(interrupts.get(task, 0)):
            os.kill(os.getpid(), signal.SIGINT)
        return task

    def tasks() -> Iterator[int]:
        for task in range(3):
            made.append(task)
            yield task

    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        cluster.for_each(work, tasks(), ended.append, label="work", total=3)


@pytest.mark.parametrize(
    ("interrupts", "expected", "lines"), [({}, [0, 1, 2], 0), ({1: 1}, [0, 1], 1), ({1: 2}, [0], 1)]
)
def test_the_first_drains_and_the_second_stops(
    capsys: pytest.CaptureFixture[str], interrupts: dict[int, int], expected: list[int], lines: int
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    made: list[int] = []
    ended: list[int] = []
    try:
        if interrupts:
            with pytest.raises(KeyboardInterrupt):
                run(interrupts, made, ended)
        else:
            run(interrupts, made, ended)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == expected
    assert capsys.readouterr().err.count("finishing what was begun; Ctrl-C again stops at once") == lines
