"""A Ray of our own on this machine: private files, a token for each driver, and sockets of this machine only.

What the environment says about another Ray (its address, its token, what to upload to it) does not apply to
this one, and is set aside while this one runs.
"""

import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.cluster import orphans
from pipelines.cluster.liveness import RayProcesses
from pipelines.cluster.private_folder import RAY_FOLDER, create_private_folder

_OBJECT_STORE_BYTES = 256 << 20
"""Tasks and reports are names and numbers; Ray's default would take 30 % of the memory."""
_TOKEN_FILE = "token"
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    # With `uv run`, Ray would upload the working folder, and start workers by `uv run` again.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray listens on the loopback interface only where it may have no second machine: this is its switch.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
if sys.platform == "linux":  # where that is the name of the loopback interface
    _ENVIRONMENT["GLOO_SOCKET_IFNAME"] = "lo"
_CONSTANTS = ("ENABLE_RAY_CLUSTER", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")
"""What Ray makes of two of these variables when it is imported, which may have been before."""
_SET_ASIDE = (
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_GCS_SERVER_PORT",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV",
    "RAY_REDIS_ADDRESS",
    "RAY_RUNTIME_ENV_HOOK",
)


class OwnRay:
    """A running Ray of our own; `stop` ends it, its processes and its files."""

    def __init__(self, num_cpus: int) -> None:
        """Start it; what was started is stopped again where that fails or is interrupted."""
        self._environment: dict[str, str | None] = {}
        self._constants: dict[str, bool] = {}
        self._folder: Path | None = None
        self.processes = RayProcesses({})
        self.resources: Mapping[str, float] = {}
        try:
            self._start(num_cpus)
        except BaseException:
            self.stop()
            raise

    def _start(self, num_cpus: int) -> None:
        folder = self._folder = create_private_folder(orphans.process_identity(os.getpid()))
        token = folder / _TOKEN_FILE
        token.touch(mode=0o600)
        token.write_text(_token())
        self._change_environment({**_ENVIRONMENT, "RAY_AUTH_TOKEN_PATH": str(token)})
        import ray

        with orphans.marked_processes(), kept_signal_handlers():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder / RAY_FOLDER),
            )
        silence_ray()
        _close_to_others(folder)
        self.processes = RayProcesses.find()
        self.resources = ray.cluster_resources()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """End Ray and every process of it, remove its files, and restore the environment."""
        import ray

        try:
            if self.processes.dead():  # there is nothing left that could answer
                orphans.end_own_processes()
            ray.shutdown()
        finally:
            orphans.end_own_processes()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._restore_environment()

    def _change_environment(self, variables: Mapping[str, str]) -> None:
        self._environment = {name: os.environ.get(name) for name in (*variables, *_SET_ASIDE)}
        for name in _SET_ASIDE:
            os.environ.pop(name, None)
        os.environ.update(variables)
        self._constants = _change_constants(dict.fromkeys(_CONSTANTS, False))

    def _restore_environment(self) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._constants:
            _change_constants(self._constants)


@functools.cache
def _token() -> str:
    """The token of this process, which Ray itself keeps for as long."""
    return secrets.token_hex(32)


def _change_constants(values: Mapping[str, bool]) -> dict[str, bool]:
    """Let Ray follow the environment, which it reads only once; returns the constants as they were."""
    from ray import _raylet
    from ray._private import ray_constants

    before = {name: getattr(ray_constants, name) for name in values}
    for name, value in values.items():
        setattr(ray_constants, name, value)
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
    return before


@contextlib.contextmanager
def kept_signal_handlers() -> Iterator[None]:
    """Keep the program's own handler of SIGTERM, which `ray.init` replaces by one that exits at once."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        handler(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, handler)


def _close_to_others(folder: Path) -> None:
    """Take from other users what Ray gives to all; the folder itself is closed from the beginning."""
    for place in folder.rglob("*"):
        with contextlib.suppress(OSError):
            mode = place.lstat().st_mode
            if not stat.S_ISLNK(mode):
                place.chmod(stat.S_IMODE(mode) & 0o700)


def silence_ray() -> None:
    """Keep what Ray says about dead workers off standard output, which may hold JSON; our lines say it."""
    from ray._private import worker

    # there is no setting: `log_to_driver` is about the output of workers alone
    worker.print_to_stdstream = _discard


def _discard(data: object, ignore_prefix: bool = False) -> None:
    """Print nothing."""
