"""Photos for a run to restore: the degraded files of held-out faces, in an archive such as a user brings."""

import io
import zipfile

from diffbfr.shards import Split
from pipelines.dataset.manifest import open_dataset


def zip_degraded(dataset: str, split: Split, num_photos: int, variant: int) -> bytes:
    """Zip one degradation of the first faces of a split as `photos/KEY.jpg`; the same faces are the same
    bytes.
    """
    opened = open_dataset(dataset)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key in opened.keys(split)[:num_photos]:
            archive.writestr(zipfile.ZipInfo(f"photos/{key}.jpg"), opened.lq_bytes(key, variant))
    return buffer.getvalue()
