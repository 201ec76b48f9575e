"""A password in an address is shown and recorded nowhere."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from diffbfr.synthetic import render_face
from diffbfr.text import shown, without_secrets
from pipelines import storage
from pipelines.cli.output import say, say_json
from pipelines.flows.lineage import Link, format_chain
from pipelines.flows.register import REGISTER
from pipelines.recipes.overrides import load
from pipelines.report import ReportData
from pipelines.report.page import render
from pipelines.tracking import runs
from pipelines.tracking.connection import Registry, open_registry

SECRET = "s3cr3t"
ADDRESSES = (
    f"http://user:{SECRET}@mlflow:5000/path",
    f"https://{SECRET}@mlflow/",
    f"postgresql://user:{SECRET}@db:5432/mlflow",
    f"postgresql+psycopg://user:a/b@{SECRET}@db/mlflow",
    f"mysql://user:{SECRET}%2F1@db/x?charset=utf8",
    f"postgresql://db/mlflow?user=u&password={SECRET}&sslmode=require",
    f"s3://KEY:{SECRET}/slash@bucket/photos",
    f"ray://user:{SECRET}@head:10001",
    f"https://host/a.zip?X-Amz-Algorithm=A&X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"https://host/a.zip?X-Amz-Security-Token={SECRET}",
    f"https://host/a.zip?X-Goog-Signature={SECRET}",
    f"https://host/a.zip?AWSAccessKeyId={SECRET}&Signature={SECRET}",
    f"https://host/a.zip?sv=2020&sig={SECRET}",
    f"https://host/?access_token={SECRET}#x",
    f"https://host/?api_key={SECRET}",
    f"https://host/?next=https%3A%2F%2Fuser%3A{SECRET}%40host",
    f"proxy http://user:{SECRET}@proxy:3128 refused, tried https://other:{SECRET}@proxy2:3128",
    f"--set tracking.uri=http://user:{SECRET}@mlflow:5000",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"host=db password='{SECRET} {SECRET}' dbname=x",
    f"Authorization: Bearer {SECRET}",
    f"http://user:{'x' * 1500}{SECRET}@rds:5432/",
)
HARMLESS = (
    "s3://bucket/photos/a@b.png",
    "http://mlflow:5000/#/experiments/1",
    "http://[::1]:5000/a@b",
    "diffbfr-cascade@champion",
    "sqlite:////data/mlflow.db",
    "--set data.variants=4",
    "synthetic:count=4,seed=1,px=128",
    "mail a@b.org = a name",
    "shard 12/40  3 img/s  loss 0.5",
)


@pytest.mark.parametrize("address", ADDRESSES)
class TestEveryWayOut:
    def test_one_rule(self, address: str) -> None:
        assert SECRET not in without_secrets(address)
        assert SECRET not in shown(address)
        assert without_secrets(without_secrets(address)) == without_secrets(address)

    def test_output(self, address: str, capsys: pytest.CaptureFixture[str]) -> None:
        say(f"{address}: written, read back")
        say_json({"uri": address, "more": [{"uri": address}]})
        assert SECRET not in capsys.readouterr().out

    def test_page(self, address: str) -> None:
        page = render(
            ReportData("restore", f"diffbfr restore {address}", address, "", 1.0, None, notes=(address,))
        )
        assert SECRET not in page

    def test_lineage(self, address: str) -> None:
        assert SECRET not in format_chain(Link(f"photos {address}", "", address, (address,)))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_password_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "unit",
    ["a://", "a.a.", "token", " x_token", ":@", "'", "?key=", "%3a%2f%2f", "://a:", "@", "=", "&sig='"],
)
def test_masking_takes_about_as_long_as_the_text(unit: str) -> None:
    """A quadratic pattern would take minutes for 200 kB; processor time, with a wide margin."""
    text = unit * (200_000 // len(unit)) + "@="
    started = time.process_time()
    without_secrets(text)
    assert time.process_time() - started < 2.0


@pytest.mark.slow
def test_the_registry_keeps_no_password(tmp_path: Path) -> None:
    """Parameters and tags of runs, which everyone with a browser can read."""
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "files").as_uri())
    address = ADDRESSES[0]
    root = "s3://bucket/root?token=" + SECRET
    parent = runs.begin_pipeline(registry, "run", "plan", {"diffbfr.faces": address, "diffbfr.root": root})
    parent.log_params({"uri": address})
    parent.log_tags({"note": address})
    found = registry.client.get_run(parent.run_id)
    assert SECRET not in json.dumps([found.data.params, found.data.tags])
    assert found.data.params["uri"] == "http://***@mlflow:5000/path"
    again = runs.begin_pipeline(registry, "run", "plan", {"diffbfr.root": root})
    assert again.run_id == parent.run_id


def test_the_record_of_a_registration_keeps_no_password() -> None:
    recipe = load("smoke", None, (f"tracking.uri={ADDRESSES[0]}",))
    assert REGISTER.config(recipe)["uri"] == "http://***@mlflow:5000/path"
    plain = replace(recipe, tracking=replace(recipe.tracking, uri=None))
    assert REGISTER.config(plain)["uri"] is None


def test_a_bucket_with_a_password_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(UsageError, match="names no bucket; expected s3://bucket/prefix"):
        storage.exists(f"s3://KEY:{SECRET}@bucket/photos")
    assert storage.is_remote("s3://bucket.of-1/photos@home")


def test_a_tracking_uri_that_is_none_is_told_without_its_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.cli.app import main

    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", "list", "--tracking", f"ftp://u:{SECRET}@h/"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "'ftp://***@h/' is neither" in capsys.readouterr().err
    with pytest.raises(UsageError):
        open_registry("root", f"ftp://u:{SECRET}@h/")


@pytest.mark.slow
def test_a_restored_archive_holds_no_password_of_its_command(tmp_path: Path) -> None:
    from PIL import Image

    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(render_face(1, 128).pixels).save(folder / "face.png")
    secrets = ["--set", f"tracking.uri=http://user:{SECRET}@mlflow:5000", "--set", "cluster.num_workers=0"]
    program = [sys.executable, "-c", "from pipelines.cli import main; main()"]
    done = subprocess.run(
        [*program, "restore", str(folder), str(output), "--aligned", "--json", *secrets],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert SECRET.encode() not in done.stdout + done.stderr
    for path in output.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert "tracking.uri=http://***@mlflow:5000" in (output / "report.html").read_text()
