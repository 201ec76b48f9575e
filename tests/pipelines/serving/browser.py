"""A headless Chromium, driven through chromedriver by the WebDriver protocol alone (W3C, 2018)."""

import base64
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window of a browser."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        self._ask("url", {"url": address})

    def run(self, script: str, *arguments: object) -> Any:
        """The result of a script in the page."""
        return self._ask("execute/sync", {"script": script, "args": list(arguments)})

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose files in a file input, as a person does: the browser reads and sends them."""
        found = self._ask("element", {"using": "css selector", "value": selector})
        self._ask(f"element/{found[ELEMENT]}/value", {"text": "\n".join(map(str, paths))})

    def wait(self, script: str, seconds: float = 120.0) -> Any:
        """The first result of a script that is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.run(script)
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(
            f"never came true: {script}; the page says {self.run('return document.body.innerText')}"
        )

    def screenshot(self) -> bytes:
        return base64.b64decode(self._ask("screenshot"))

    def console(self) -> list[str]:
        """What the browser complained about, such as a breach of the page's policy."""
        return [entry["message"] for entry in self._ask("se/log", {"type": "browser"})]

    def _ask(self, command: str, values: object = None) -> Any:
        return _call(f"{self._session}/{command}", values)


@contextlib.contextmanager
def headless_chromium(folder: Path, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser with a profile in `folder`; the test is skipped where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "chromedriver.log").open("wb")
    process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log, start_new_session=True)
    try:
        options = {
            "binary": browser,
            "args": [
                "--headless=new",
                "--no-sandbox",  # a test may run as root, and its pages are our own
                "--disable-dev-shm-usage",
                f"--window-size={width},{height}",
                f"--user-data-dir={folder / 'profile'}",
            ],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        base = f"http://127.0.0.1:{port}/session"
        created = _begin(base, {"capabilities": {"alwaysMatch": wanted}})
        session = f"{base}/{created['sessionId']}"
        try:
            yield Browser(session)
        finally:
            _call(session, method="DELETE")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def _begin(address: str, values: object) -> Any:
    end = time.monotonic() + 60
    while True:
        try:
            return _call(address, values)
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _call(address: str, values: object = None, method: str = "") -> Any:
    data = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(
        address, data, {"Content-Type": "application/json"}, method=method or None
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{address}: {error.read().decode()[:500]}") from error
