"""Tells things to a server that may be away: in order, each once, on a thread of its own, so that nobody waits for it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_PAUSE_S: Final = 1.0
_PULSE_S: Final = 10.0
_PATIENCE_S: Final = 30.0


class Teller:
    """A queue of calls. One that fails is repeated until it succeeds, or until `is_refused` says that it never will.

    `pulse` is called every `pulse_s` seconds on the same thread, between the calls, and never repeated; `on_away` with the error whenever
    something failed after a call that did not.
    """

    def __init__(
        self,
        is_refused: Callable[[Exception], bool] = lambda error: False,
        on_away: Callable[[Exception], None] = lambda error: None,
        pulse: Callable[[], None] = lambda: None,
        pulse_s: float = _PULSE_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._is_refused, self._on_away, self._pulse = is_refused, on_away, pulse
        self._pulse_s, self._pause_s = pulse_s, pause_s
        self._waiting: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._well = True
        self.num_refused = 0
        """Calls that were left out because telling them again would not have helped."""
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
        self._thread.start()

    def tell(self, call: Callable[[], object]) -> None:
        """Add a call; returns at once."""
        with self._changed:
            self._waiting.append(call)
            self._changed.notify()

    def close(self, patience_s: float = _PATIENCE_S) -> bool:
        """Wait until everything is told, or give up on a server that stays away; returns which."""
        with self._changed:
            self._deadline = time.monotonic() + patience_s
            self._changed.notify()
        self._thread.join()
        return not self._waiting

    def _run(self) -> None:
        beat = time.monotonic() + self._pulse_s
        while (call := self._next(beat)) is not None:
            error = self._try(call)
            if call is self._pulse:  # whatever it could not tell, it tells at its next beat
                beat = time.monotonic() + self._pulse_s
                continue
            self._well = error is None
            if error is not None and not self._is_refused(error):
                if self._deadline is not None and time.monotonic() > self._deadline:
                    return
                time.sleep(self._pause_s)
                continue
            self.num_refused += error is not None
            with self._changed:
                self._waiting.popleft()

    def _next(self, beat: float) -> Callable[[], object] | None:
        """Wait for a call: the pulse at its time, however much there is to tell; None at the end."""
        with self._changed:
            while True:
                if self._deadline is None and time.monotonic() >= beat:
                    return self._pulse
                if self._waiting:
                    return self._waiting[0]
                if self._deadline is not None:
                    return None
                self._changed.wait(max(0.0, beat - time.monotonic()))

    def _try(self, call: Callable[[], object]) -> Exception | None:
        """What kept a call from being told, if anything; said once, until something is told again."""
        try:
            call()
        except Exception as error:  # a client of a server has errors of its own, and each means that it was not told
            if self._well:
                self._on_away(error)
            self._well = False
            return error
        return None
