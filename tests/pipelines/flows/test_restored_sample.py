"""The page of a restored archive shows a bounded part of it, chosen in one pass, doubtful faces first."""

from collections.abc import Iterator

from pipelines.dataset.manifest import LedgerRow
from pipelines.flows import restored_sample
from pipelines.flows.restored_sample import faces_of, sample_faces, sample_rows
from pipelines.restoration.face_rows import FaceRow

NUM = 20_000


def row(number: int) -> LedgerRow:
    status = "quarantined" if number % 10 == 3 else "restored"
    reason = f"reason-{number % 50}" if status == "quarantined" else ""
    return LedgerRow(
        name=f"{number:06}.jpg",
        status=status,  # type: ignore[arg-type]
        reason=reason,
        message=reason,
        num_bytes=1,
        sha256="",
        width=9,
        height=9,
        num_faces=1,
        duplicate_of="",
        output="x",
        output_sha256="",
        model_digest="",
        seconds=float(number % 7919),
    )


def face(
    number: int, consistency: float | None, *, doubtful: bool = False, status: str = "restored"
) -> FaceRow:
    return FaceRow(
        photo=f"{number:06}.jpg",
        face=0,
        status=status,  # type: ignore[arg-type]
        verdict="too_small" if status == "left_alone" else "chosen",
        message="",
        left=0.0,
        top=0.0,
        right=1.0,
        bottom=1.0,
        points=(0.0,) * 10,
        score=1.0,
        eyes_px=9.0,
        turn=0.0,
        contrast=None,
        detail=None,
        consistency=consistency,
        low_confidence=doubtful,
        fidelity=None,
        attempts=1,
        identity=None,
        input_sha256="",
        output_sha256="",
        seconds=0.0,
    )


def rows() -> Iterator[LedgerRow]:
    return map(row, range(NUM))


def test_a_page_of_any_archive_shows_as_much_in_any_order() -> None:
    first = frozenset(("000007.jpg", "019999.jpg"))
    sample = sample_rows(rows(), first, (), 1.0)
    assert sample.shown[:2] == (row(7), row(19_999))
    assert len(sample.shown) == restored_sample.NUM_PHOTOS
    assert len(sample.refused) == restored_sample.NUM_REFUSED
    assert [slow.seconds for slow in sample.facts.slowest] == [7918.0, 7918.0, 7917.0, 7917.0, 7916.0]
    assert [(it.reason, it.count) for it in sample.facts.refused] == [
        (f"reason-{number}", NUM // 50) for number in (3, 13, 23, 33, 43)
    ]
    backwards = sample_rows(map(row, reversed(range(NUM))), first, (), 1.0)
    assert set(backwards.shown) == set(sample.shown)
    assert backwards.refused == sample.refused


def test_doubtful_faces_come_first_and_those_left_alone_last() -> None:
    faces = [face(number, 30.0) for number in range(1000)]
    faces += [face(5, 11.0, doubtful=True), face(6, 10.0, doubtful=True), face(6, None, status="left_alone")]
    sample = sample_faces(iter(faces))
    assert [(it.photo, it.consistency) for it in sample.doubtful] == [
        ("000006.jpg", 10.0),
        ("000005.jpg", 11.0),
    ]
    assert dict(sample.counts) == {"restored": 1002, "too_small": 1, "doubtful": 2}
    shown = faces_of(iter(faces), frozenset(("000006.jpg",)))
    assert [it.consistency for it in shown["000006.jpg"].faces] == [10.0, 30.0, None]
    assert shown["000006.jpg"].faces[-1].status == "left_alone"
    assert shown["000006.jpg"].num_more == 0
    crowd = faces_of([face(7, 20.0 + number) for number in range(9)], frozenset(("000007.jpg",)))
    assert [it.consistency for it in crowd["000007.jpg"].faces] == [20.0, 21.0, 22.0, 23.0, 24.0, 25.0]
    assert crowd["000007.jpg"].num_more == 3
