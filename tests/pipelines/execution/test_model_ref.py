"""A pinned cascade is the one that restores, on whatever machine, and no other."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffbfr.cascade import write_record
from diffbfr.checkpoint import save_stage
from diffbfr.errors import UsageError
from diffbfr.models.denoiser import Denoiser
from diffbfr.stages import IRM1_TINY, IRM2_TINY, TEM_TINY, StageSpec
from pipelines.cluster import Cluster
from pipelines.execution.model_ref import pin_model
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import EXPECTED, build, encode, face


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only wait for their second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save(folder: Path, seed: int = 0) -> Path:
    """An untrained cascade of 8 -> 16 px."""
    torch.manual_seed(seed)
    for spec, px in ((IRM1_TINY, 8), (IRM2_TINY, 16), (TEM_TINY, 16)):
        save_stage(folder, smaller(spec, px), random_weights(smaller(spec, px)))
    write_record(folder, {})
    return folder


def smaller(spec: StageSpec, px: int) -> StageSpec:
    unet = replace(
        spec.unet,
        image_px=px,
        inner_channels=8,
        channel_multipliers=(1, 2),
        res_blocks=(1, 1),
        attention_px=(),
        head_channels=8,
    )
    return replace(spec, unet=unet, fast=replace(spec.fast, num_evaluations=3))


def random_weights(spec: StageSpec) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn_like(weights) * 0.05 for name, weights in Denoiser(spec).net.state_dict().items()
    }


def test_a_folder_is_pinned_with_its_digest_and_sizes_and_loads(tmp_path: Path) -> None:
    pinned = pin_model(save(tmp_path / "cascade"))

    assert (pinned.lq_px, pinned.hq_px) == (8, 16)
    assert pinned.load().digest == pinned.digest
    assert pin_model(save(tmp_path / "other", seed=1)).digest != pinned.digest


def test_a_cascade_that_changed_since_it_was_pinned_is_refused(tmp_path: Path) -> None:
    pinned = pin_model(save(tmp_path / "cascade"))
    save(tmp_path / "cascade", seed=1)

    with pytest.raises(UsageError, match="expected it unchanged"):
        pinned.load()


def test_a_folder_without_a_cascade_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected"):
        pin_model(tmp_path)


@pytest.mark.slow
def test_a_real_cascade_gives_the_same_bytes_alone_and_in_any_unit(tmp_path: Path, serial: Cluster) -> None:
    model = pin_model(save(tmp_path / "cascade"))
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / f"photos/{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    pictures = []
    for unit_size in (1, 3, 5):
        output = tmp_path / f"out-{unit_size}"
        restore_archive(
            str(tmp_path / "photos"),
            str(output),
            model,
            RestoreOptions(aligned=True, unit_size=unit_size),
            serial,
        )
        pictures.append({path.name: path.read_bytes() for path in output.glob("*.png")})

    assert len(pictures[0]) == 5
    assert pictures[0] == pictures[1] == pictures[2]


@pytest.mark.slow
def test_photos_pictures_and_cascade_may_lie_on_s3(
    tmp_path: Path, s3_bucket: str, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import storage

    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    build(tmp_path / "archive")
    storage.put_tree(tmp_path / "archive", f"{s3_bucket}/archive")
    local = pin_model(save(tmp_path / "cascade"))
    remote = local.stage_to(f"{s3_bucket}/restored/cascade")

    assert remote.folder == f"{s3_bucket}/restored/cascade"
    assert (
        remote
        == local.stage_to(remote.folder)
        == remote.stage_to(f"{s3_bucket}/elsewhere")
        == pin_model(remote.folder)
    )
    assert remote.load().digest == local.digest
    options = RestoreOptions(aligned=True)
    of_disk = restore_archive(str(tmp_path / "archive"), str(tmp_path / "out"), FakeModel(), options, serial)
    of_s3 = restore_archive(f"{s3_bucket}/archive", f"{s3_bucket}/out", FakeModel(), options, serial)
    again = restore_archive(f"{s3_bucket}/archive", f"{s3_bucket}/out", FakeModel(), options, serial)

    assert {row.name: row.status for row in of_s3.rows} == EXPECTED
    assert [row.output_sha256 for row in of_s3.rows] == [row.output_sha256 for row in of_disk.rows]
    assert (again.num_worked, again.rows) == (0, of_s3.rows)
