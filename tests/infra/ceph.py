"""A real S3 server: Ceph's RADOS Gateway with one monitor and one object store in memory, from Debian's packages.

It needs root, as the packages' programs drop no rights here, and no network but the address that it listens on.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.registry.mlflow_server import free_port

PROGRAMS = ("ceph-mon", "monmaptool", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
PACKAGES = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
KEY, SECRET = "an-access-key", "a-secret-key"
_START_S = 90.0

_CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{old_port}]
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = {bytes}
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
log file = {folder}/log/$name.log
keyring = {folder}/keyring
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
[client.rgw.a]
rgw data = {folder}/rgw
rgw frontends = beast endpoint={address}:{port}
rgw enable usage log = false
rgw run sync thread = false
"""


class CephServer:
    """The running server; `stop` and `start` are about the gateway alone, so that what it stores stays."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.port = folder, free_port()
        self.endpoint = f"http://{address}:{self.port}"
        self._config = ["-c", str(folder / "ceph.conf")]
        for name in ("mon", "osd", "run", "log"):
            (folder / name).mkdir(parents=True)
        (folder / "keyring").touch()
        fsid = str(uuid.uuid4())
        (folder / "ceph.conf").write_text(
            _CONFIG.format(
                fsid=fsid,
                mon_port=free_port(),
                old_port=free_port(),
                bytes=4 << 30,
                folder=folder,
                address=address,
                port=self.port,
            )
        )
        self._make(fsid)

    @property
    def environment(self) -> dict[str, str]:
        """What leads a client here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the gateway, and wait until it answers."""
        self._run("radosgw", "-n", "client.rgw.a")
        deadline = time.monotonic() + _START_S
        while not self.answers():
            assert time.monotonic() < deadline, (self.folder / "log" / "client.rgw.a.log").read_text()[-2000:]
            time.sleep(0.2)

    def stop(self) -> None:
        """Kill the gateway: connections break, and new ones are refused."""
        self._kill("client.rgw.a")

    def answers(self) -> bool:
        """Whether the gateway answers a request."""
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End every process of it."""
        for name in ("client.rgw.a", "osd.0", "mon.a"):
            self._kill(name)

    def client(self) -> Any:
        """A client of boto3."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def _make(self, fsid: str) -> None:
        config = (self.folder / "ceph.conf").read_text()
        addresses = config.partition("mon host = ")[2].partition("\n")[0]
        monitor_map = str(self.folder / "monmap")
        subprocess.run(
            ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monitor_map],
            check=True,
            capture_output=True,
        )
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitor_map)
        self._run("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph-osd", "-i", "0")
        self.start()
        user = ["--uid=test", "--display-name=test", f"--access-key={KEY}", f"--secret-key={SECRET}"]
        self._run("radosgw-admin", "user", "create", *user)

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [program, *self._config, *words], capture_output=True, text=True, timeout=_START_S, check=False
        )
        assert done.returncode == 0, f"{program} {words}: {done.stderr[-2000:]}"

    def _kill(self, name: str) -> None:
        file = self.folder / "run" / f"{name}.pid"
        with contextlib.suppress(OSError, ValueError):
            process = int(file.read_text())
            os.kill(process, signal.SIGKILL)
            while Path(f"/proc/{process}").exists():
                time.sleep(0.05)


@contextmanager
def ceph(folder: Path, address: str = "127.0.0.1") -> Iterator[CephServer]:
    """Run the server with an empty bucket `diffbfr`; skips the test where it is not installed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: {PACKAGES}")
    if os.geteuid() != 0:
        pytest.skip("Ceph's programs are started as root here")
    server: CephServer | None = None
    try:
        server = CephServer(folder, address)
        server.client().create_bucket(Bucket="diffbfr")
        yield server
    finally:
        if server is not None:
            server.close()
