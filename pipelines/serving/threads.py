"""Threads that end with the process, whatever they are doing."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonPool:
    """Calls functions on a few threads, in the order they came.

    Unlike those of `ThreadPoolExecutor`, its threads do not keep a process that is to end waiting for them.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Call a function later."""
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(call)
        return future

    def close(self, wait_s: float) -> None:
        """Begin nothing new, and wait a little for what is being done."""
        while not self._calls.empty():
            self._calls.get()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(wait_s / len(self._threads))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
