"""Every file of the corpus gives its pixels or is refused for its reason, and none takes long."""

import time
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

from diffbfr.images import REASONS, ImageRefused, decode
from tests.diffbfr.image_corpus import Case, corpus

CORPUS = corpus()


def test_the_corpus_has_at_least_100_files_in_14_families_under_names_of_their_own() -> None:
    families = Counter(case.family for case in CORPUS)
    assert len(CORPUS) >= 170
    assert len(families) >= 19
    assert min(families.values()) >= 3
    assert len({case.id for case in CORPUS}) == len(CORPUS)
    assert {reason for case in CORPUS for reason in case.reasons} <= set(REASONS)
    assert all((case.pixels is None) == bool(case.reasons) or case.either for case in CORPUS)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.id)
def test_a_file_gives_its_pixels_or_is_refused_for_its_reason(case: Case) -> None:
    try:
        decoded, refusal = decode(case.data), None
    except ImageRefused as error:
        decoded, refusal = None, error
    if decoded is None:
        assert refusal is not None
        assert refusal.reason_code in case.reasons
        assert "\n" not in str(refusal)
        return
    assert case.pixels is not None, f"it was decoded; expected {case.reasons}"
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape == case.pixels.shape
    assert decoded.pixels.flags.c_contiguous
    assert case.either or np.abs(decoded.pixels.astype(int) - case.pixels).mean() <= case.tolerance


@pytest.mark.parametrize("case", [case for case in CORPUS if case.family == "bomb"], ids=lambda case: case.id)
def test_a_bomb_is_refused_or_left_folded_within_50_ms(case: Case) -> None:
    decode(CORPUS[0].data)
    times = []
    for _ in range(3):
        started = time.process_time()
        with pytest.raises(ImageRefused) if case.pixels is None else nullcontext():
            decode(case.data)
        times.append(time.process_time() - started)
    assert min(times) < 0.05
