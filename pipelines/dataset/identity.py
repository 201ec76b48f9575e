"""The two identities of a dataset: `content_id` covers pixels, LQ bytes and parameters, `archive_id` tars."""

import json

from diffbfr.shards import Sample
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD, row_fields
from pipelines.dataset.commits import Commit, TarInfo


def visible_content(commit: Commit) -> bytes:
    """The part of a shard that a model can see, one JSON line for each sample, hashed into `content_id`.

    It covers the pixels, the LQ bytes, the parameters of Eq. 13 and which part of a frame its photo holds,
    but neither codecs nor positions.
    """
    jpegs: dict[str, list[str]] = {sample.key: [] for sample in commit.samples}
    for tar in commit.tars:
        for member in tar.members:
            if member.column == LQ_COLUMN and member.name != LQ_RECORD:
                jpegs[member.key].append(member.sha256)
    lines = [
        [
            row.key,
            row.split,
            row.pixel_sha256,
            row.low_pixel_sha256,
            jpegs[row.key],
            row.variants,
            *_valid(row),
        ]
        for row in commit.samples
    ]
    return "".join(json.dumps(line, default=row_fields, sort_keys=True) + "\n" for line in lines).encode()


def _valid(row: Sample) -> list[tuple[float, ...]]:
    return [] if row.face is None else [row.face.quad]


def archive_line(tar: TarInfo) -> bytes:
    """Name and digest of a tar as one line, hashed into `archive_id`."""
    return f"{tar.tar}\0{tar.sha256}\n".encode()
