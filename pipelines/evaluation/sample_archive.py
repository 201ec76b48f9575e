"""The sample archive that a run restores: degraded files of held-out faces in a zip, as a user would have."""

import io
import zipfile

from diffbfr.shards import Split
from pipelines.dataset.manifest import open_dataset


def zip_degraded(dataset: str, split: Split, num_photos: int, variant: int) -> bytes:
    """Zip one degradation of the first faces of a split as `photos/KEY.jpg`; equal faces give equal bytes."""
    opened = open_dataset(dataset)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key in opened.keys(split)[:num_photos]:
            # a `ZipInfo` without a date has a fixed one, so that the bytes do not depend on the time
            archive.writestr(zipfile.ZipInfo(f"photos/{key}.jpg"), opened.lq_bytes(key, variant))
    return buffer.getvalue()
