"""The app answers only its own page: not a rebound name, not another site; and it keeps no name as a path."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.restoration.request import PhotoSettings
from pipelines.serving.hosts import allowed_hosts, is_loopback
from pipelines.serving.jobs import work_item
from pipelines.serving.restorer import ServedCascade
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.serving.served import Served, served

BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeModel()) as found:
        yield found


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", ""]
)
def test_a_name_that_was_pointed_here_is_refused(server: Served, host: str) -> None:
    answer = server.ask("api/server", Host=host)
    assert answer.status == 403
    assert b"digest" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1234", "[::1]:80"])
def test_a_name_of_this_machine_is_answered(server: Served, host: str) -> None:
    assert server.ask("api/server", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_page_of_another_site_starts_nothing(server: Served, headers: dict[str, str]) -> None:
    answer = server.ask("api/photos", b"x", Content_Type=BYTES, **headers)
    assert answer.status == 403
    assert "access-control-allow-origin" not in {name.lower() for name in answer.headers}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_another_site_may_send_unasked_is_refused(server: Served, kind: str) -> None:
    """Browsers ask before they send any other type across sites, and are not answered."""
    assert server.ask("api/photos", b"x", Content_Type=kind).status == 415
    asked = server.ask("api/photos", method="OPTIONS", Origin=server.address.rstrip("/"))
    assert asked.status == 405


def test_a_photo_larger_than_a_decoder_takes_is_refused_before_it_is_read(server: Served) -> None:
    answer = server.ask("api/photos", b"x", Content_Type=BYTES, Content_Length=str((1 << 29) + 1))
    assert answer.status == 413


def test_the_page_loads_its_own_files_alone(server: Served) -> None:
    for path in ("", "page.js", "page.css", "api/server", "nothing"):
        headers = server.ask(path).headers
        policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
    page = server.ask("").body.decode()
    assert "http:" not in page
    assert "https:" not in page
    assert " style=" not in page
    assert "innerHTML" not in server.ask("page.js").body.decode()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "C:\\x\\..\\passwd", "a\0/passwd", "..", ""]
)
def test_a_name_is_never_a_path(name: str) -> None:
    request = ServedCascade(FakeModel(), Path("w"), "0" * 64).request(1, PhotoSettings(""))
    output = work_item(name, 1, request).output
    assert "/" not in output
    assert output not in ("", ".", "..")


def test_a_server_for_others_answers_to_bare_addresses_which_nobody_can_rebind() -> None:
    hosts = allowed_hosts("0.0.0.0")
    assert hosts.allows("192.168.1.7:8765")
    assert hosts.allows("[fe80::1]:8765")
    assert not hosts.allows("evil.example:8765")
    assert is_loopback("127.0.0.1")
    assert not is_loopback("0.0.0.0")
