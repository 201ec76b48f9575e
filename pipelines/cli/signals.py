"""SIGTERM and SIGHUP, as of systemd, Slurm, Kubernetes or a terminal, end a command as Ctrl-C does."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
GRACE_S = 9.0
"""How long the end may take: the shortest time that a sender gives before SIGKILL is ten seconds (Docker)."""
_SIGNAL_BASE = 128


class EndingSignals:
    """Turns the first of these signals into a KeyboardInterrupt in the main thread.

    Further ones are ignored while the command ends. Where that takes longer than `GRACE_S`, the process ends
    anyway: what it has committed is complete, and the same command goes on from there.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._received: signal.Signals | None = None

    def install(self) -> None:
        """Begin to handle them, except those that are ignored, as by `nohup`."""
        handled = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
        if not handled:
            return
        # A handler runs between two operations of the main thread, which may wait in one; a thread does not.
        numbers, writer = socket.socketpair()
        writer.setblocking(False)
        wakeup = writer.detach()
        _watch(wakeup)
        threading.Thread(target=self._end_late, args=(numbers, handled), name="grace", daemon=True).start()
        for number in handled:
            signal.signal(number, self._handle)
        # a forked process would share the socket, and a signal to it would end this process
        os.register_at_fork(
            before=lambda: _watch(-1),
            after_in_parent=lambda: _watch(wakeup),
            after_in_child=lambda: _restore_defaults(handled),
        )

    @property
    def received(self) -> bool:
        """Whether one of them has come."""
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, by default that of Ctrl-C."""
        return _SIGNAL_BASE + (self._received or signal.SIGINT)

    @property
    def line(self) -> str:
        """What is said at the end."""
        ended = f"ended by {self._received.name}" if self._received else "interrupted"
        return f"{ended}; the same command goes on from here"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            raise KeyboardInterrupt

    def _end_late(self, numbers: socket.socket, handled: Sequence[signal.Signals]) -> None:
        """In a thread: end the process when `GRACE_S` are over after the first of the signals."""
        while (number := numbers.recv(1)[0]) not in handled:
            pass
        time.sleep(GRACE_S)
        self._received = signal.Signals(number)
        self._say(self.line)
        os._exit(self.exit_code)


def _watch(wakeup: int) -> None:
    """Have the numbers of signals written to a socket, to none for -1; only the main thread may change it."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


def _restore_defaults(handled: Sequence[signal.Signals]) -> None:
    _watch(-1)
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
