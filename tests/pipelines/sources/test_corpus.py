"""A folder of odd and hostile files becomes a dataset of exactly the good ones, and each of the others has
a row with its reason.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffbfr.images import center_square, decode, pixel_digest, resize
from pipelines.dataset.manifest import open_dataset, read_quarantine
from tests.diffbfr.image_corpus import Case, corpus
from tests.pipelines.tiny_dataset import CONFIG, build

PX = 16


def _expected(case: Case) -> set[str]:
    """What may become of a case: "committed", or the reasons of its refusal."""
    if case.pixels is None:
        return (
            {*case.reasons, "too_small"} if case.family in ("16-bit", "extreme-size") else set(case.reasons)
        )
    outcome = "too_small" if min(case.pixels.shape[:2]) < PX else "committed"
    return {outcome, *(case.reasons if case.either else ())}


@pytest.mark.slow
def test_the_corpus_as_a_folder_of_photos(tmp_path: Path) -> None:
    cases = {f"{case.id}{case.suffix}": case for case in corpus()}
    (tmp_path / "photos").mkdir()
    for name, case in cases.items():
        (tmp_path / "photos" / name).write_bytes(case.data)
    info = build(
        tmp_path / "photos", tmp_path / "data", replace(CONFIG, hq_px=PX, lq_px=4, variants=1, shard_size=50)
    )
    dataset = open_dataset(tmp_path / "data")
    found = {sample.source: "committed" for sample in dataset.samples}
    found |= {row.source: row.reason for row in read_quarantine(tmp_path / "data")}
    assert found.keys() == cases.keys()
    assert info.num_samples + info.num_quarantined == len(cases)
    assert {name: reason for name, reason in found.items() if reason not in _expected(cases[name])} == {}
    for sample in dataset.samples:
        case = cases[sample.source]
        assert case.pixels is not None
        assert (sample.height, sample.width) == case.pixels.shape[:2]
        if not case.either:
            made = resize(center_square(case.pixels), PX, "bicubic")
            if case.tolerance == 0:
                assert sample.pixel_sha256 == pixel_digest(made), sample.source
            else:
                stored = decode(dataset.read(sample.key, f"hq{PX}", "webp")).pixels
                assert np.abs(stored.astype(int) - made).mean() <= case.tolerance, sample.source
