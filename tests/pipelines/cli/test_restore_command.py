"""What `diffbfr restore` says of whole photos."""

import sys
from pathlib import Path

import pytest

from diffbfr.faces import weights
from pipelines.cli.app import main
from pipelines.restoration.request import read_request
from tests.diffbfr.faces.dots import DotDetector
from tests.pipelines.dot_photos import dot_detector, encoded, find_dots, photo_of_dots


@pytest.mark.slow
def test_an_archive_without_a_face_is_copied_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_dots(monkeypatch)
    monkeypatch.setattr(weights, "load_detector", lambda path: DotDetector())
    monkeypatch.setenv("DIFFBFR_FACE_DETECTOR", dot_detector(tmp_path).place)
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(encoded(photo_of_dots(number, 0), "JPEG"))
    places = [str(tmp_path / "in"), str(tmp_path / "out")]
    settings = ["--set", "cluster.num_workers=0", "--set", "restore.batch_faces=2"]
    monkeypatch.setattr(sys, "argv", ["diffbfr", "restore", *places, *settings])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    request = read_request(places[1])
    assert request is not None
    assert request.batch_faces == 2
    assert "no face was restored: none was found, or all were left alone" in capsys.readouterr().out
    for number in range(2):
        name = f"{number}.jpg"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
