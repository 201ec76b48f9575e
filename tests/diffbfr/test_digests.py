from pathlib import Path

import pytest

from diffbfr.digests import model_digest
from diffbfr.errors import UsageError


def make(folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for stage in ("irm1", "irm2", "tem"):
        (folder / f"{stage}.json").write_text(texts.get(f"{stage}_json", "{}"))
        (folder / f"{stage}.safetensors").write_text(texts.get(stage, stage))
    return folder


def test_digest_covers_specification_and_weights_and_nothing_else(tmp_path: Path) -> None:
    one, same = make(tmp_path / "a"), make(tmp_path / "b")
    (same / "record.json").write_text("made on another day")
    other_weights, other_spec = make(tmp_path / "c", tem="other"), make(tmp_path / "d", tem_json="[]")
    stages = ("irm1", "irm2", "tem")
    assert model_digest(one, stages) == model_digest(same, stages)
    assert len({model_digest(folder, stages) for folder in (one, other_weights, other_spec)}) == 3
    assert model_digest(one, ("irm1",)) == model_digest(other_weights, ("irm1",))


def test_a_folder_without_a_stage_is_refused_by_the_files_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    (folder / "irm2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"holds no irm2\.safetensors"):
        model_digest(folder, ("irm1", "irm2", "tem"))
