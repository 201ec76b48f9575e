"""Imported weights compute what the original networks compute, and no other file becomes weights."""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffbfr.errors import UsageError
from diffbfr.importing import checkpoints
from diffbfr.importing.checkpoints import PUBLIC, Family, open_checkpoint
from diffbfr.models.denoiser import Denoiser
from diffbfr.stages import IRM1, IRM2_SR3, TEM_DIFFACE, StageName, StageSpec
from tests.diffbfr.importing.original_networks import GuidedNetwork, Sr3Network
from tests.diffbfr.importing.small_checkpoints import SMALL, original, published, write_checkpoint

FAMILY: dict[str, Family] = {"irm1": "sr3", "irm2": "sr3", "tem": "difface"}
STAGES: tuple[StageName, ...] = ("irm1", "irm2", "tem")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "PUBLIC", SMALL)


@pytest.mark.parametrize(
    ("stage", "network", "tensors", "parameters"),
    [
        (IRM1, lambda: Sr3Network(128, 64, (1, 2, 4, 8, 8), 2, 16, 32), 362, 97_807_491),
        (IRM2_SR3, lambda: Sr3Network(512, 64, (1, 2, 4, 8, 16), 1, None, 16), 229, 155_334_339),
        (
            TEM_DIFFACE,
            lambda: GuidedNetwork(512, 32, (1, 2, 4, 8, 8, 16, 16), (1, 2, 2, 2, 2, 3, 4), (32, 16, 8), 64),
            630,
            159_788_454,
        ),
    ],
    ids=["sr3-128", "sr3-512", "difface"],
)
def test_every_tensor_of_the_published_networks_has_its_place(
    stage: StageSpec, network: Callable[[], nn.Module], tensors: int, parameters: int
) -> None:
    (known,) = (it for it in PUBLIC if it.stage == stage)
    with torch.device("meta"):
        there = {name: tuple(t.shape) for name, t in network().named_parameters()}
    assert {part.name: part.shape for part in known.layout.values()} == there
    assert (len(there), sum(map(math.prod, there.values()))) == (tensors, parameters)


def imported(place: Path, stage: StageName) -> Denoiser:
    opened = open_checkpoint(write_checkpoint(place, stage), FAMILY[stage], stage)
    denoiser = Denoiser(opened.checkpoint.stage)
    denoiser.net.load_state_dict(opened.read())
    return denoiser.eval().requires_grad_(False)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_an_imported_stage_estimates_what_the_original_does(stage: StageName, tmp_path: Path) -> None:
    """The original hears sqrt(alphas_cumprod) of its step, or the step itself, each counted from 0.

    In float64, where rounding hides nothing.
    """
    denoiser = imported(tmp_path / "file.pth", stage).double()
    generator = torch.Generator().manual_seed(1)
    y_t, condition = torch.randn(
        2, 2, 3, denoiser.spec.px, denoiser.spec.px, generator=generator, dtype=torch.float64
    )
    t = torch.tensor([1, 700])
    network = original(stage).double()
    if stage == "tem":
        expected = network(y_t, t - 1)
    else:
        kept = (1 - torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)).cumprod(0)
        expected = network(torch.cat([condition, y_t], 1), kept[t - 1].sqrt())
    found = denoiser.estimate(y_t, t, None if stage == "tem" else condition)
    assert relative(found, expected) < 1e-12


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_what_is_converted_of_difface_matters(tmp_path: Path) -> None:
    """With the steps of the paper, or with the rows of query, key and value as they lie there, it is off."""
    denoiser = imported(tmp_path / "file.pth", "tem")
    y_t, t = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([3])
    expected = original("tem")(y_t, t - 1)
    assert relative(denoiser.net(y_t, t.float()), expected) > 0.01
    weights = published("tem")
    for name, part in SMALL[2].layout.items():
        if name.endswith("qkv.weight"):
            dict(denoiser.net.named_parameters())[name].copy_(weights[part.name][..., None])
    assert relative(denoiser.epsilon(y_t, t, None), expected[:, :3]) > 0.01


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.double() for name, tensor in tensors.items()},
        lambda tensors: {name: nn.Parameter(tensor) for name, tensor in tensors.items()},
        lambda tensors: {name.removeprefix("denoise_fn."): tensor for name, tensor in tensors.items()},
    ],
    ids=["state_dict", "module", "float64", "parameters", "bare"],
)
def test_the_usual_ways_to_save_a_network_are_read(
    wrap: Callable[[dict[str, Tensor]], dict[str, object]], tmp_path: Path
) -> None:
    plain = open_checkpoint(write_checkpoint(tmp_path / "a.pth", "irm1"), "sr3").read()
    torch.save(wrap(published("irm1")), tmp_path / "b.pth")
    found = open_checkpoint(tmp_path / "b.pth", "sr3").read()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    torch.save(published("irm1"), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert open_checkpoint(tmp_path / "c.pth", "sr3").read().keys() == plain.keys()


@pytest.mark.usefixtures("small")
def test_another_schedule_in_the_file_is_noted(tmp_path: Path) -> None:
    assert open_checkpoint(write_checkpoint(tmp_path / "a.pth", "irm2"), "sr3").notes == ()
    torch.save(published("irm2") | {"betas": torch.linspace(1e-4, 2e-2, 1000)}, tmp_path / "b.pth")
    (note,) = open_checkpoint(tmp_path / "b.pth", "sr3").notes
    assert "another schedule of noise than irm2 is sampled with (beta 1e-06 to 0.01 over 2000 steps)" in note


def _changed(name: str, change: Callable[[dict[str, Tensor]], None]) -> Callable[[], bytes]:
    def data() -> bytes:
        tensors = published(name)
        change(tensors)
        return _saved(tensors)

    return data


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _packed() -> bytes:
    """A file whose members are compressed: a few bytes of it could be gigabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved(published("irm1")))) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return buffer.getvalue()


STEM = "denoise_fn.downs.0.weight"
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "missing": (
        _changed("irm1", lambda it: it.pop("denoise_fn.downs.3.conv.weight")),  # type: ignore[arg-type,return-value]
        "is not SR3 16 -> 128 px: it lacks downs.3.conv.weight of shape [8, 8, 3, 3]; expected",
    ),
    "extra": (
        _changed("irm1", lambda it: it.update({"denoise_fn.extra.weight": torch.zeros(1)})),
        "it has extra.weight, which SR3 16 -> 128 px has not",
    ),
    "shape": (
        _changed("irm2", lambda it: it.update({STEM: torch.zeros(8, 3, 3, 3)})),
        "is not SR3 64 -> 512 px: it has downs.0.weight of shape [8, 3, 3, 3]; SR3 64 -> 512 px has [8, 6, 3, 3]",
    ),
    "whole numbers": (
        _changed("irm1", lambda it: it.update({STEM: torch.zeros(8, 6, 3, 3, dtype=torch.int32)})),
        "it has downs.0.weight as torch.int32",
    ),
    "sparse": (
        _changed("irm1", lambda it: it.update({STEM: torch.zeros(8, 6, 3, 3).to_sparse()})),
        "(torch.sparse_coo)",
    ),
    "the other family": (lambda: _saved(published("tem")), "is another network: "),
    "an optimiser": (
        lambda: _saved({"epoch": 1, "optimizer": {"state": {}}}),
        "holds 2 entries, of which 'epoch' is no tensor",
    ),
    "a number": (lambda: _saved(3), "holds a int; expected the tensors of a network by name"),
    "a pickle": (lambda: pickle.dumps({"a": 1}), "cannot be read (it holds no tensors that torch wrote)"),
    "text": (lambda: b"<html>quota exceeded</html>", "cannot be read"),
    "nothing": (lambda: b"", "cannot be read"),
    "a cut file": (lambda: _saved(published("irm1"))[:100_000], "cannot be read (PytorchStreamReader failed"),
    "compressed": (_packed, "is compressed; torch stores them as they are"),
    "a program": (lambda: _scripted(), "cannot be read (it is TorchScript, a program)"),
}


def _scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", WRONG)
def test_another_file_is_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    make, expected = WRONG[name]
    place = tmp_path / "weights.pth"
    place.write_bytes(make())
    with pytest.raises(UsageError) as refusal:
        open_checkpoint(place, "sr3")
    line = str(refusal.value)
    assert line.startswith(f"{place} ")
    assert expected in line
    assert "\n" not in line


@pytest.mark.usefixtures("small")
def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(published("irm1"), buffer, _use_new_zipfile_serialization=zipped)
        whole = buffer.getvalue()
        for length in (*range(0, 200, 7), *range(200, len(whole), len(whole) // 40), len(whole) - 1):
            (tmp_path / "cut.pth").write_bytes(whole[:length])
            with pytest.raises(UsageError, match=r"cut\.pth "):
                open_checkpoint(tmp_path / "cut.pth", "sr3").read()


@pytest.mark.usefixtures("small")
def test_a_flipped_bit_is_found_before_anything_is_made_of_it(tmp_path: Path) -> None:
    """torch itself reads such a file without a word."""
    place = write_checkpoint(tmp_path / "file.pth", "irm1")
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    torch.load(place, weights_only=True)
    with pytest.raises(UsageError, match=r"its member .* differs from its checksum"):
        open_checkpoint(place, "sr3").read()


@pytest.mark.usefixtures("small")
def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = published("tem")
    tensors["out.2.bias"][1] = math.nan
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(UsageError, match=r"nan.pth holds NaN or infinity in out\.2\.bias"):
        open_checkpoint(tmp_path / "nan.pth", "difface").read()


@pytest.mark.usefixtures("small")
def test_weights_of_another_stage_than_asked_for_are_refused(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path / "file.pth", "irm1")
    with pytest.raises(
        UsageError, match=r"is SR3 16 -> 128 px, weights of irm1; expected those of irm2; name"
    ):
        open_checkpoint(place, "sr3", "irm2")
    with pytest.raises(UsageError, match=r"expected those of tem; say --stage irm1"):
        open_checkpoint(place, "sr3", "tem")


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_place_without_a_file_is_named(kind: str, tmp_path: Path) -> None:
    place = tmp_path if kind == "folder" else tmp_path / "none.pth"
    with pytest.raises(UsageError, match=r"is a folder|is not there"):
        open_checkpoint(place, "sr3")


def _refusals() -> Iterator[str]:
    for known in PUBLIC:
        yield f"{known.licence} {known.terms}"


def test_each_checkpoint_names_its_licence_and_that_of_its_data() -> None:
    assert all("FFHQ" in text and "CC BY-NC-SA 4.0" in text for text in _refusals())
    (difface,) = (known for known in PUBLIC if known.family == "difface")
    assert difface.licence.startswith("S-Lab License 1.0, non-commercial")
