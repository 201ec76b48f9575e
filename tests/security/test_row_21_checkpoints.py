"""A checkpoint of torch is a pickle: none that is imported runs code, and none grows beyond its size."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diffbfr.errors import UsageError
from diffbfr.importing.checkpoints import open_checkpoint


class Exploit:
    """Unpickling it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "nested"])
def test_a_checkpoint_that_asks_for_code_is_refused_and_runs_none(kind: str, tmp_path: Path) -> None:
    place, made = tmp_path / "weights.pth", tmp_path / "made"
    if kind == "bare":
        place.write_bytes(pickle.dumps(Exploit(made), 2))
    else:
        value: object = {"denoise_fn.downs.0.weight": torch.zeros(1), "x": Exploit(made)}
        value = {"state_dict": value} if kind == "nested" else value
        torch.save(value, place, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(UsageError, match=r"weights\.pth asks for posix\.mkdir; expected tensors alone"):
        open_checkpoint(place, "sr3")
    assert not made.exists()


def test_a_whole_network_saved_as_objects_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UsageError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "module.pth", "sr3")


def test_members_that_would_grow_are_not_read(tmp_path: Path) -> None:
    """A gigabyte of zeros is a megabyte when compressed, and a tensor of torch when read."""
    place = tmp_path / "bomb.pth"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(8 << 20))
    with pytest.raises(UsageError, match=r"its member archive/data\.pkl is compressed"):
        open_checkpoint(place, "sr3")


def test_one_number_that_claims_to_be_a_large_tensor_is_refused_by_its_shape(tmp_path: Path) -> None:
    torch.save({"denoise_fn.downs.0.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "e.pth")
    with pytest.raises(UsageError, match="is another network"):
        open_checkpoint(tmp_path / "e.pth", "sr3")
