"""A server that is not there is an error of the network: exit 3, in one line, and no photo is blamed."""

import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, SSLError

from pipelines import storage
from pipelines.storage.s3_errors import translate_errors


@pytest.mark.parametrize("kind", [EndpointConnectionError, ConnectTimeoutError])
def test_a_server_that_is_not_there_may_come_back(kind: type[Exception]) -> None:
    error = kind(endpoint_url="http://127.0.0.1:9", error="refused")  # type: ignore[call-arg]

    def call() -> None:
        raise error

    assert storage.is_transient(error)
    with pytest.raises(storage.TransportError, match="start it or correct AWS_ENDPOINT_URL") as caught:
        translate_errors("s3://bucket/key", call)
    assert caught.value.exit_code == 3


def test_a_certificate_that_is_refused_does_not_pass_by_itself() -> None:
    assert not storage.is_transient(SSLError(endpoint_url="https://127.0.0.1:9", error="self-signed"))


@pytest.mark.slow
def test_every_operation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    place = "s3://bucket/key"
    operations = (
        lambda: storage.read_bytes(place),
        lambda: storage.write_atomic(place, b"1", create_only=True),
        lambda: storage.list_dir(place),
        lambda: list(storage.walk(place)),
        lambda: storage.open_read(place),
        lambda: storage.check_writable(place),
    )
    for operation in operations:
        with pytest.raises(storage.TransportError, match="no S3 server answers for"):
            operation()
