"""A queue of calls to a server that may be away: sent in order, each once, by a thread that retries."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_PAUSE_S: Final = 1.0
_TICK_S: Final = 10.0
_PATIENCE_S: Final = 30.0


class Outbox:
    """Calls that a background thread makes in order; a call that fails is retried until it succeeds.

    A call whose error `is_refused` says will not go away is dropped and counted. `on_tick` is called every
    `tick_s` seconds on the same thread, between the calls, and is not retried. `on_away` is called with the
    error when a call fails after one that succeeded.
    """

    def __init__(
        self,
        is_refused: Callable[[Exception], bool] = lambda error: False,
        on_away: Callable[[Exception], None] = lambda error: None,
        on_tick: Callable[[], None] = lambda: None,
        tick_s: float = _TICK_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._is_refused = is_refused
        self._on_away = on_away
        self._on_tick = on_tick
        self._tick_s = tick_s
        self._pause_s = pause_s
        self._pending: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._reachable = True
        self.num_refused = 0
        """Calls that were dropped because a retry would not have helped."""
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    @property
    def num_pending(self) -> int:
        """Calls that were not made yet."""
        return len(self._pending)

    def enqueue(self, call: Callable[[], object]) -> None:
        """Add a call; returns at once."""
        with self._changed:
            self._pending.append(call)
            self._changed.notify()

    def close(self, patience_s: float = _PATIENCE_S) -> bool:
        """Wait until every call was made or `patience_s` has passed; returns whether all were made."""
        with self._changed:
            self._deadline = time.monotonic() + patience_s
            self._changed.notify()
        self._thread.join()
        return not self._pending

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick_s
        while (call := self._wait_for_call(next_tick)) is not None:
            error = self._try(call)
            if call is self._on_tick:
                next_tick = time.monotonic() + self._tick_s
                continue
            self._reachable = error is None
            if error is not None and not self._is_refused(error):
                if self._deadline is not None and time.monotonic() > self._deadline:
                    return
                time.sleep(self._pause_s)
                continue
            self.num_refused += error is not None
            with self._changed:
                self._pending.popleft()

    def _wait_for_call(self, next_tick: float) -> Callable[[], object] | None:
        """The next call, or the tick if it is due, however many calls are pending; None at the end."""
        with self._changed:
            while True:
                if self._deadline is None and time.monotonic() >= next_tick:
                    return self._on_tick
                if self._pending:
                    return self._pending[0]
                if self._deadline is not None:
                    return None
                self._changed.wait(max(0.0, next_tick - time.monotonic()))

    def _try(self, call: Callable[[], object]) -> Exception | None:
        """Make a call and return its error; the first error of a row is reported."""
        try:
            call()
        except Exception as error:  # clients of servers raise errors of many kinds
            if self._reachable:
                self._on_away(error)
            self._reachable = False
            return error
        return None
