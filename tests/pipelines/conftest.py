"""An S3 server and an empty registry for the tests of pipelines."""

from collections.abc import Iterator

import pytest

from tests.pipelines.registry.fixtures import (  # noqa: F401 - fixtures
    make_cascade,
    registry,
    run,
    shared_root,
    stage_folder,
)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[dict[str, str]]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_DEFAULT_REGION"],
    ).create_bucket(Bucket="bucket")
    yield settings
    server.stop()


@pytest.fixture
def s3_bucket(_s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket on an S3 server (moto) on loopback, and the environment that leads there."""
    for name, value in _s3_server.items():
        monkeypatch.setenv(name, value)
    return "s3://bucket"
