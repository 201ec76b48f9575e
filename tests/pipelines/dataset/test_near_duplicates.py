"""Faces that look the same are found, in time that grows with their number, and splits that share them named."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.images.perceptual import BITS, NEAR, perceptual_hash
from diffbfr.shards import Sample, Split
from diffbfr.synthetic import render_face
from pipelines.dataset.near_duplicates import find_near_duplicates

FACES = [render_face(seed, 64).pixels for seed in range(24)]


def differing(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def sample(key: str, split: Split, near_hash: str, crop: str = "") -> Sample:
    return Sample(key, split, f"{key}.png", 1, "", 8, 8, "", "", (), crop or key, near_hash)


def flipped(near_hash: str, *bits: int) -> str:
    return f"{int(near_hash, 16) ^ sum(1 << bit for bit in bits):064x}"


def test_one_face_in_other_bytes_is_near_and_two_faces_are_not() -> None:
    hashes = [perceptual_hash(face) for face in FACES]
    for face, own in zip(FACES, hashes, strict=True):
        image, buffer = Image.fromarray(face), io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        copies = [
            Image.open(buffer).convert("RGB"),
            image.resize((150, 150), Image.Resampling.BICUBIC),
            image.convert("L").convert("RGB"),
            Image.fromarray(np.clip(face * 1.05 + 3, 0, 255).astype(np.uint8)),
        ]
        assert max(differing(perceptual_hash(np.asarray(copy)), own) for copy in copies) <= NEAR
    pairs = [differing(one, other) for i, one in enumerate(hashes) for other in hashes[:i]]
    assert min(pairs) > NEAR


def test_the_hash_is_the_same_on_every_machine() -> None:
    y, x = np.mgrid[0:96, 0:96]
    square = np.stack([2 * x, 2 * y, (x * y) // 40], axis=2).astype(np.uint8)
    assert perceptual_hash(square) == FROZEN
    assert len(FROZEN) * 4 == BITS
    assert perceptual_hash(np.zeros((8, 8, 3), np.uint8)) == "0" * 64


FROZEN = "2aa055d7c9907db751a47333223356deeef64ed4ca735bc810cb71c8b5406552"


def test_groups_counts_and_splits() -> None:
    base = [perceptual_hash(face) for face in FACES[:4]]
    samples = [
        sample("a", "train", base[0], "same"),
        sample("b", "test", base[0], "same"),
        sample("c", "train", flipped(base[1], *range(NEAR))),
        sample("d", "train", base[1]),
        sample("e", "val", base[2]),
        sample("f", "train", flipped(base[2], *range(0, 240, 16))),
        sample("g", "test", flipped(base[3], *range(NEAR + 1))),
        sample("h", "train", base[3]),
        sample("i", "train", ""),
        sample("j", "test", ""),
    ]
    found = find_near_duplicates(samples)
    assert (found.groups, found.faces, found.identical) == (3, 6, 2)
    assert [[twin.key for twin in group] for group in found.across_splits] == [["a", "b"], ["e", "f"]]
    assert found.across_splits[0][1].source == "b.png"
    assert find_near_duplicates([]).groups == 0


@pytest.mark.parametrize("seed", range(3))
def test_all_pairs_are_found_that_comparing_each_with_each_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (120, BITS))
    for row in range(60, 120):
        bits[row] = bits[row - 60]
        bits[row, rng.choice(BITS, rng.integers(0, 24), replace=False)] ^= 1
    hashes = [np.packbits(row).tobytes().hex() for row in bits]
    found = find_near_duplicates([sample(f"{i:03d}", "train", value) for i, value in enumerate(hashes)])
    group = list(range(120))
    for i, one in enumerate(hashes):
        for j, other in enumerate(hashes[:i]):
            if differing(one, other) <= NEAR:
                group = [group[j] if name == group[i] else name for name in group]
    sizes = [group.count(name) for name in set(group)]
    assert found.groups == sum(size > 1 for size in sizes)
    assert found.faces == sum(size for size in sizes if size > 1)


def test_many_equal_hashes_are_one_group() -> None:
    found = find_near_duplicates([sample(f"{i:05d}", "train", "0" * 64, "flat") for i in range(20_000)])
    assert (found.groups, found.faces, found.identical) == (1, 20_000, 20_000)


@pytest.mark.slow
def test_show_names_the_photos_that_two_splits_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli.app import main

    (tmp_path / "photos").mkdir()
    for number in range(12):
        image = Image.fromarray(render_face(number, 128).pixels)
        image.save(tmp_path / "photos" / f"{number}.png")
        image.save(tmp_path / "photos" / f"{number}-small.jpg", quality=85)
    settings = ("cluster.num_workers=0", f"data.faces={tmp_path / 'photos'}", "data.test_fraction=0.4")

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["diffbfr", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    root = str(tmp_path / "root")
    call("shard", "--root", root, *(part for setting in settings for part in ("--set", setting)))
    shown = call("data", "show", root)
    assert "24 faces in 12 groups, 0 of equal pixels; " in shown
    alike = json.loads(call("data", "show", root, "--json"))["near_duplicates"]
    assert alike["groups"] == 12
    assert len(alike["across_splits"]) == shown.count("! these look the same: ") > 0
