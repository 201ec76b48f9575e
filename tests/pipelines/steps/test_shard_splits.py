"""The split of a photo follows from its pixels, whatever file holds them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.degradation import PRESETS
from diffbfr.synthetic import render_face
from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.reuse import sibling_datasets
from pipelines.dataset.samples import ShardConfig, make_face, split_of
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset, plan_shards, shard

CONFIG = ShardConfig(64, 16, 1, 50, 0.3, 0.3, 0, PRESETS["paper"])


def encodings(pixels: np.ndarray) -> dict[str, bytes]:
    """One picture in the files in which people keep it."""
    image = Image.fromarray(pixels)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif, dated = Image.Exif(), Image.Exif()
    exif[0x0112] = 6
    dated[0x9003] = "2020:01:01 00:00:00"
    files = {}
    for name, picture, kind, options in (
        ("fast.png", image, "PNG", {"compress_level": 1}),
        ("small.png", image, "PNG", {"compress_level": 9, "optimize": True}),
        ("dated.png", image, "PNG", {"exif": dated}),
        ("turned.png", turned, "PNG", {"exif": exif}),
        ("icc.png", image, "PNG", {"icc_profile": b"x" * 200}),
        ("opaque.png", image.convert("RGBA"), "PNG", {}),
        ("a.bmp", image, "BMP", {}),
        ("a.tif", image, "TIFF", {"compression": "tiff_lzw"}),
        ("a.webp", image, "WEBP", {"lossless": True}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def test_one_picture_has_one_split_in_every_file() -> None:
    for number in range(6):
        faces = [
            make_face(CONFIG, "k", name, data).sample
            for name, data in encodings(render_face(number, 96).pixels).items()
        ]
        assert len({face.split for face in faces}) == 1
        assert len({face.crop_sha256 for face in faces}) == 1
        assert len({face.source_sha256 for face in faces}) == len(faces)


def test_what_lies_outside_the_centred_square_and_the_size_of_a_dataset_decide_nothing() -> None:
    pixels = render_face(3, 96).pixels
    wide = np.pad(pixels, ((0, 0), (20, 20), (0, 0)))
    plain, padded, small = (
        make_face(config, "k", "a.png", encodings(picture)["fast.png"]).sample
        for config, picture in (
            (CONFIG, pixels),
            (CONFIG, wide),
            (replace(CONFIG, hq_px=32, lq_px=8), pixels),
        )
    )
    assert plain.crop_sha256 == padded.crop_sha256 == small.crop_sha256
    assert plain.split == padded.split == small.split


def build(source: str, root: Path, reuse: bool = False) -> dict[str, str]:
    tasks = plan_shards(open_source(source), CONFIG, str(root), sibling_datasets(str(root)) if reuse else ())
    for task in tasks:
        shard(task)
    finish_dataset(str(root), tasks)
    return {sample.source: sample.split for sample in open_dataset(root).samples}


@pytest.mark.slow
def test_no_face_of_the_test_split_is_in_train_under_another_name(tmp_path: Path) -> None:
    """18 of 18 test faces were, when the split followed from the bytes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        files = encodings(render_face(number, 96).pixels)
        for name in ("fast.png", "small.png", "a.bmp"):
            (photos / f"{number}-{name}").write_bytes(files[name])
    splits = build(str(photos), tmp_path / "data")
    samples = open_dataset(tmp_path / "data").samples
    held_out = {sample.pixel_sha256 for sample in samples if sample.split == "test"}
    assert held_out
    assert not held_out & {sample.pixel_sha256 for sample in samples if sample.split != "test"}
    assert len(splits) == 36


@pytest.mark.slow
def test_procedural_faces_keep_their_splits_and_reuse_changes_none(tmp_path: Path) -> None:
    """Their bytes follow from their pixels, and the packaged cascade was trained on their train split."""
    source = open_source("synthetic:count=12,seed=0,px=96")
    files = {ref.name: source.read(ref) for ref in source.refs()}
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, data in files.items():
        (photos / name).write_bytes(data)
    procedural = build(source.uri, tmp_path / "procedural")
    apart = build(str(photos), tmp_path / "elsewhere" / "photos")
    reused = build(str(photos), tmp_path / "photos-data", reuse=True)
    samples = open_dataset(tmp_path / "procedural").samples
    assert procedural == {s.source: split_of(CONFIG, s.source_sha256) for s in samples}
    assert reused == apart == {s.source: split_of(CONFIG, s.crop_sha256) for s in samples}
