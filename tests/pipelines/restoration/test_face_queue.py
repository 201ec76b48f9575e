"""Batches hold faces of all starts together, and are full but for the last of a unit.

That a face in such a batch is what it would be alone is tested in `tests/diffbfr/test_cascade.py`.
"""

import pytest

from pipelines.restoration.face_queue import FaceQueue
from tests.benchmarks.batches import CountingCascade, draw_of, run_units


def test_a_face_that_is_drawn_again_fills_a_slot_beside_first_draws() -> None:
    cascade = CountingCascade()
    queue = FaceQueue(cascade, "fast", 4)
    queue.add([draw_of(f"face {number}", is_doubtful=number == 1) for number in range(6)])
    queue.run(until_empty=True)
    assert cascade.batches == [
        (("face 0", "face 1", "face 2", "face 3"), (0.5,) * 4),
        (("face 4", "face 5", "face 1", "face 1"), (0.5, 0.5, 1.0, 1.0)),
    ]


@pytest.mark.parametrize("redrawn", [0.0, 0.3])
def test_only_the_last_batches_of_a_unit_are_padded(redrawn: float) -> None:
    cascade = run_units(photos=64, batch=4, unit=16, redrawn=redrawn)
    padded = [number for number, (keys, _) in enumerate(cascade.batches) if len(set(keys)) < 4]
    # the last of a unit, and one more where a face of that is drawn again
    assert len(padded) <= 2 * 4
    assert cascade.num_padded() < 0.08 * 4 * len(cascade.batches)
    assert (cascade.num_mixed() > 0) == (redrawn > 0)
