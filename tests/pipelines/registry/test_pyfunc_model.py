"""A registered cascade is served by MLflow itself, without pickle, and gives what the cascade gives."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from diffbfr.cascade import Cascade, cascade_digest
from diffbfr.digests import model_digest
from diffbfr.images import decode, encode_png, lq_to_model, to_pixels, to_tensor
from diffbfr.synthetic import render_face
from pipelines.registry import register_cascade, register_stage
from pipelines.tracking.runs import Run
from tests.pipelines.registry.fixtures import lineage
from tests.pipelines.registry.mlflow_server import free_port
from tests.pipelines.tiny_cascade import HQ_PX, LQ_PX, make_tiny_cascade

PROJECT = Path(__file__).parents[3]
LOAD = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/diffbfr-cascade@candidate")
print(model.metadata.signature.inputs.to_json())
print(json.dumps(model.predict(json.load(sys.stdin))))
"""


def test_digest_of_a_cascade_is_the_one_that_restore_pins(tmp_path: Path) -> None:
    folder = make_tiny_cascade(tmp_path / "cascade")
    assert model_digest(folder, ("irm1", "irm2", "tem")) == cascade_digest(folder)


@pytest.mark.slow
def test_mlflow_models_serve_answers_a_post_with_a_restored_picture(run: Run, tmp_path: Path) -> None:
    folder = make_tiny_cascade(tmp_path / "cascade")
    stages = {stage: register_stage(run, stage, folder, lineage()) for stage in ("irm1", "irm2", "tem")}
    register_cascade(run, folder, stages, lineage())
    environment = os.environ | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": run.registry.uri,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    port = free_port()
    model = "models:/diffbfr-cascade@candidate"
    words = [
        "models",
        "serve",
        "--model-uri",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--env-manager",
        "local",
        "--workers",
        "1",
    ]
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            env=environment,
            cwd=PROJECT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        file = encode_png(render_face(1, 64).pixels)
        body = json.dumps({"inputs": [base64.b64encode(file).decode()]}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(asked, timeout=120) as answer:
                    (text,) = json.load(answer)["predictions"]
                break
            except urllib.error.URLError as error:
                if (
                    isinstance(error, urllib.error.HTTPError)
                    or server.poll() is not None
                    or time.monotonic() > deadline
                ):
                    raise AssertionError((tmp_path / "serve.log").read_text()) from error
                time.sleep(0.5)
        asked.data = json.dumps({"inputs": [base64.b64encode(b"no picture").decode()]}).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=120)
        refusal = json.load(refused.value)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert refusal["message"].startswith("image 0: not_an_image: the file starts with")
    assert "stack_trace" not in refusal
    served = decode(base64.b64decode(text)).pixels
    x_0 = to_tensor(lq_to_model(decode(file).pixels, LQ_PX))
    alone = to_pixels(Cascade.load(folder).restore(x_0, [f"{hashlib.sha256(file).hexdigest()}/0/0"]).tem)[0]
    assert served.shape == (HQ_PX, HQ_PX, 3)
    assert np.abs(served.astype(int) - alone.astype(int)).max() <= 1


@pytest.mark.slow
def test_mlflow_serves_the_registered_cascade_without_pickle(run: Run, tmp_path: Path) -> None:
    folder = make_tiny_cascade(tmp_path / "cascade")
    stages = {stage: register_stage(run, stage, folder, lineage()) for stage in ("irm1", "irm2", "tem")}
    register_cascade(run, folder, stages, lineage())
    files = [encode_png(render_face(seed, 64).pixels) for seed in (1, 2)]

    environment = os.environ | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    texts = str([base64.b64encode(file).decode() for file in files]).replace("'", '"')
    command = [sys.executable, "-c", LOAD, run.registry.uri]
    done = subprocess.run(command, input=texts, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    signature, answer = done.stdout.strip().splitlines()
    assert signature == '[{"type": "string", "required": true}]'

    model = Cascade.load(folder)
    for file, text in zip(files, answer.strip("[]").split(", "), strict=True):
        served = decode(base64.b64decode(text.strip('"'))).pixels
        x_0 = to_tensor(lq_to_model(decode(file).pixels, LQ_PX))
        alone = to_pixels(model.restore(x_0, [f"{hashlib.sha256(file).hexdigest()}/0/0"]).tem)[0]
        assert served.shape == (HQ_PX, HQ_PX, 3)
        assert np.abs(served.astype(int) - alone.astype(int)).max() <= 1
