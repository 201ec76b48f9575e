"""What an output keeps of its input: transparency, date, camera and density, and nothing that may identify."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffbfr.images import decode
from pipelines.restoration.face_input import read_face
from pipelines.restoration.work import WorkItem
from pipelines.sources import open_source
from pipelines.steps.restore import RestoreTask, RestoreWorker
from tests.diffbfr.image_corpus import file_of
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.restore_requests import REQUEST
from tests.pipelines.sample_archive import face


def test_a_face_is_reduced_and_its_opacity_has_the_size_of_the_output() -> None:
    alpha = np.zeros((40, 40), np.uint8)
    alpha[:, 20:] = 255
    read = read_face(file_of(np.dstack([face(1), alpha]), "PNG"), 16, 64)
    assert (read.width, read.height, read.pixels.shape) == (40, 40, (16, 16, 3))
    assert read.kept.alpha is not None
    assert read.kept.alpha.shape == (64, 64)
    assert set(np.unique(read.kept.alpha[:, :24])) == {0}
    assert set(np.unique(read.kept.alpha[:, 40:])) == {255}
    assert read_face(file_of(face(1), "PNG"), 16, 64).kept.alpha is None


def test_an_output_keeps_transparency_date_camera_and_density_but_no_position(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "Model 7"
    exif.get_ifd(0x8769).update({0x9003: "2018:01:02 03:04:05", 0xA431: "serial 77"})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    alpha = np.full((40, 40), 255, np.uint8)
    alpha[:20] = 0
    (tmp_path / "in").mkdir()
    cut_out = file_of(np.dstack([face(1), alpha]), "PNG", exif=exif, dpi=(300, 300))
    (tmp_path / "in" / "cut.png").write_bytes(cut_out)
    source = open_source(tmp_path / "in", every_file=True)
    items = tuple(WorkItem(ref, ref.name) for ref in source.refs())
    task = RestoreTask(0, source, items, str(tmp_path / "out"), REQUEST)
    (outcome,) = RestoreWorker(FakeModel())(task).outcomes
    assert (outcome.row.status, outcome.row.message) == ("restored", "")
    data = (tmp_path / "out/cut.png").read_bytes()
    assert b"serial" not in data
    with Image.open(tmp_path / "out/cut.png") as output:
        assert (output.mode, output.size) == ("RGBA", (64, 64))
        assert output.info["dpi"][0] == np.float64(output.info["dpi"][1])
        assert round(output.info["dpi"][0]) == 300
        found = output.getexif()
        assert found[0x0110] == "Model 7"
        assert found.get_ifd(0x8769)[0x9003] == "2018:01:02 03:04:05"
        assert not found.get_ifd(0x8825)
    opacity = decode(data).alpha
    assert opacity is not None
    assert (opacity[:28].max(), opacity[36:].min()) == (0, 255)
