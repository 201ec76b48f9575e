"""Figure 2's toys: the files are read or refused, the tail is cut as said, a training continues, labels count."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffbfr.errors import UsageError
from pipelines.experiments import long_tail_digits
from pipelines.experiments.toys import ddpm, gan, picture
from pipelines.experiments.toys.classifier import Classifier, train_classifier
from pipelines.experiments.toys.counts import count_labels
from pipelines.experiments.toys.mnist import long_tail, read_digits, to_model, to_pixels

COUNTS = {"train": (40, 30, 20, 15, 12, 10, 8, 6, 5, 4), "test": (6,) * 10}
PREFIX = {"train": "train", "test": "t10k"}


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as idx.gz."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(head + array.tobytes(), 1)


def bars(labels: np.ndarray) -> np.ndarray:
    """A picture for each label: a bright bar at a height of its own, with a little noise."""
    noise = np.random.default_rng(0).integers(0, 30, (len(labels), 28, 28)).astype(np.uint8)
    for picture_, label in zip(noise, labels, strict=True):
        picture_[2 * label + 3 : 2 * label + 6, 4:24] = 220
    return noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files like MNIST's, of some bars."""
    place = tmp_path_factory.mktemp("mnist")
    for part, counts in COUNTS.items():
        labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10, dtype=np.uint8), counts))
        (place / f"{PREFIX[part]}-images-idx3-ubyte.gz").write_bytes(idx(bars(labels)))
        (place / f"{PREFIX[part]}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return place


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DDPM of a few thousand parameters that takes few steps."""
    monkeypatch.setattr(ddpm, "UNET", replace(ddpm.UNET, inner_channels=8))
    monkeypatch.setattr(ddpm, "SAMPLER", replace(ddpm.SAMPLER, num_evaluations=4))


def test_the_tail_is_cut_and_the_head_is_whole(folder: Path) -> None:
    digits = read_digits(folder, "train")
    kept = long_tail(digits, (9, 8, 7, 6, 5, 4, 3, 2))
    assert np.bincount(digits.labels).tolist() == list(COUNTS["train"])
    assert np.bincount(kept.labels).tolist() == [40, 30, 9, 8, 7, 6, 5, 4, 3, 2]
    assert np.array_equal(kept.pixels[:, 2 * 9 + 4, 10] == 220, kept.labels == 9)
    assert np.array_equal(to_pixels(to_model(digits.pixels)), digits.pixels)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "no file .* expected MNIST's four"),
        (lambda file: file.write_bytes(b"<html>"), "cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "cannot be read"),
        (
            lambda file: file.write_bytes(gzip.compress(b"text, no idx")),
            "no array of bytes in the idx format",
        ),
        (lambda file: file.write_bytes(idx(np.zeros((120, 9), np.uint8))), "expected MNIST"),
        (lambda file: file.write_bytes(idx(np.full(150, 10, np.uint8))), "expected MNIST"),
    ],
)
def test_other_files_are_refused(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path / "train-labels-idx1-ubyte.gz")
    with pytest.raises(UsageError, match=message):
        read_digits(tmp_path, "train")


def test_both_models_have_the_papers_size_within_5_percent() -> None:
    assert abs(ddpm.num_parameters() / 1.44e6 - 1) < 0.05
    assert abs(gan.num_parameters() / 1.51e6 - 1) < 0.05


@pytest.mark.parametrize("model", [ddpm, gan])
@pytest.mark.usefixtures("one_thread", "_small")
def test_an_interrupted_training_ends_with_the_same_digits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: object
) -> None:
    digits = read_digits(folder, "train")
    monkeypatch.setattr(model, "BATCH", 4)
    run = model.run_steps  # type: ignore[attr-defined]

    def stop_after_2(state: object, step: Callable[[int], None], num: int, file: Path, **_: object) -> None:
        run(state, step, min(2, num), file)
        raise KeyboardInterrupt

    whole = model.train_and_sample(digits, 7, 16, 2, tmp_path / "whole.safetensors")  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(model, "run_steps", stop_after_2)
        with pytest.raises(KeyboardInterrupt):
            model.train_and_sample(digits, 7, 16, 2, tmp_path / "two.safetensors")  # type: ignore[attr-defined]
    continued = model.train_and_sample(digits, 7, 16, 2, tmp_path / "two.safetensors")  # type: ignore[attr-defined]
    other = model.train_and_sample(digits, 8, 16, 2, tmp_path / "other.safetensors")  # type: ignore[attr-defined]
    assert (whole.dtype, whole.shape) == (np.uint8, (2, 28, 28))
    assert np.array_equal(continued, whole)
    assert not np.array_equal(other, whole)


@pytest.mark.usefixtures("_small")
def test_a_generated_digit_depends_on_its_number_and_not_on_its_batch() -> None:
    torch.manual_seed(0)
    net = ddpm.UNet(ddpm.UNET).eval()
    together, alone = ddpm.generate(net, 3, 0, 2)[1], ddpm.generate(net, 3, 1, 1)[0]
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1
    assert together.std() > 20


def test_labels_are_compared_with_the_wanted_shares() -> None:
    wanted = np.array([0.3, 0.3] + [0.05] * 8)
    labels = np.repeat(np.arange(10, dtype=np.uint8), (40, 40, 10, 5, 5, 0, 0, 0, 0, 0))
    counts = count_labels(labels, np.arange(100) < 75, wanted)
    assert counts.total_variation == pytest.approx(0.25)  # the five missing labels
    assert counts.coverage == pytest.approx(3 / 8)  # one label too often counts once
    assert counts.tail_share == pytest.approx(0.2)
    assert counts.clear == 0.75
    assert counts.missed == (5, 6, 7, 8, 9)
    equal = np.repeat(np.arange(10, dtype=np.uint8), (60, 60, *[10] * 8))
    same = count_labels(equal, np.ones(200, bool), wanted)
    assert (same.total_variation, same.coverage, same.missed) == (pytest.approx(0), pytest.approx(1), ())


def test_the_classifier_learns_to_name_what_it_saw(folder: Path, tmp_path: Path) -> None:
    digits = read_digits(folder, "train")
    trained = train_classifier(digits, 1600, tmp_path / "c.safetensors")
    labels, clear = trained.name(digits.pixels)
    assert (labels == digits.labels).mean() > 0.95
    untrained, unclear = Classifier().name(digits.pixels)
    assert (untrained == digits.labels).mean() < 0.5
    assert clear.mean() > 0.1 > unclear.mean()


@pytest.mark.usefixtures("_small")
def test_the_command_trains_counts_draws_and_continues(folder: Path, tmp_path: Path) -> None:
    budget = long_tail_digits.Budget(ddpm=32, gan=64, classifier=640, generated=4)
    target = tmp_path / "docs" / "digits"
    text = long_tail_digits.run(folder, tmp_path / "out", target, (0, 1), 0, budget)
    figures = json.loads(target.with_suffix(".json").read_text())
    assert {name: len(counts) for name, counts in figures["counts"].items()} == {
        "ddpm": 2,
        "gan": 2,
        "test": 2,
    }
    for counts in figures["counts"].values():
        assert [sum(count["shares"]) for count in counts] == [pytest.approx(1)] * 2
    assert target.with_suffix(".png").stat().st_size > 5_000
    assert [line.split("  ")[0] for line in text.splitlines()[1:4]] == ["DDPM", "GAN", "test digits"]
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.npy")}
    assert len(files) == 4
    assert long_tail_digits.run(folder, tmp_path / "out", target, (0, 1), 0, budget) == text
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert json.loads(target.with_suffix(".json").read_text()) == figures


def test_a_grid_shows_the_first_hundred_row_by_row() -> None:
    pixels = np.arange(101, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    shown = picture.tile(pixels)
    assert shown.shape == (280, 280)
    assert shown[::28, ::28].tolist() == np.arange(100).reshape(10, 10).tolist()
    assert picture.tile(pixels[1:2])[0, 28] == 0


@pytest.mark.parametrize("field", ["ddpm", "gan", "generated"])
def test_a_budget_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(UsageError, match=f"the budget has {field}=0; expected at least 1"):
        long_tail_digits.Budget(**{field: 0})


def test_real_digits_are_drawn_by_the_shares_of_the_training_set(folder: Path) -> None:
    kept = long_tail(read_digits(folder, "train"), (9, 8, 7, 6, 5, 4, 3, 2))
    test = read_digits(folder, "test")
    rows = long_tail_digits._real_digits(kept, test, 0, 4000)
    heights = [(rows[:, 2 * label + 4, 10] == 220).mean() for label in range(10)]
    assert np.abs(np.array(heights) - kept.shares).max() < 0.03
