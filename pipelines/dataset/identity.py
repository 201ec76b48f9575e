"""What identifies a dataset: `content_id` covers pixels, LQ bytes and draws, `archive_id` the tars."""

import json

from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD, row_fields
from pipelines.dataset.commits import Commit, TarInfo


def visible_content(commit: Commit) -> bytes:
    """Describe each sample by what a model can see of it, for `content_id`, a line each: pixels, LQ bytes,
    draws; no codec, no place.
    """
    jpegs: dict[str, list[str]] = {sample.key: [] for sample in commit.samples}
    for member in (member for record in commit.tars for member in record.members):
        if member.column == LQ_COLUMN and member.name != LQ_RECORD:
            jpegs[member.key].append(member.sha256)
    lines = [
        [row.key, row.split, row.pixel_sha256, row.low_pixel_sha256, jpegs[row.key], row.variants]
        for row in commit.samples
    ]
    return "".join(json.dumps(line, default=row_fields, sort_keys=True) + "\n" for line in lines).encode()


def archive_line(tar: TarInfo) -> bytes:
    """Describe a tar by its bytes, for `archive_id`."""
    return f"{tar.tar}\0{tar.sha256}\n".encode()
