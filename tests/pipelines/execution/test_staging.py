"""Files of the driver's disk reach workers elsewhere by their content, on a disk that is shared or on S3."""

from pathlib import Path

import pytest

from diffbfr.cascade import packaged_cascade
from diffbfr.digests import model_digest
from diffbfr.stages import STAGE_NAMES
from pipelines import storage
from pipelines.execution.staging import STAGED, stage_file, stage_models, staged_file
from pipelines.steps.context import fetch_artifact


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    if request.param == "disk":
        return str(tmp_path / "shared")
    return f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"


def test_a_file_arrives_though_the_drivers_is_gone(place: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.npz"
    weights.write_bytes(b"first")
    first = stage_file(weights, place)
    assert stage_file(weights, place) == first
    weights.write_bytes(b"other")
    other = stage_file(weights, place)
    weights.unlink()
    assert staged_file(first).read_bytes() == b"first", "a copy is never replaced"
    assert staged_file(other).read_bytes() == b"other"
    assert staged_file(first).name == "weights.npz"


def test_the_files_of_a_cascade_arrive_and_no_other(place: str, tmp_path: Path) -> None:
    digest = model_digest(packaged_cascade(), STAGE_NAMES)
    address = stage_models(packaged_cascade(), digest, place)
    assert address == storage.join(place, STAGED, digest[:20])
    assert model_digest(fetch_artifact(address), STAGE_NAMES) == digest
    assert stage_models(packaged_cascade(), digest, place) == address
