"""What FFHQ's publisher says of each file: `ffhq-dataset-v2.json` with the MD5 of every file and of its pixels.

The index is a quarter of a gigabyte, so it is searched for its innermost objects and never parsed whole.
"""

import hashlib
import json
import mmap
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from diffbfr.images import ImageRefused, decode
from pipelines import storage
from pipelines.apart import Lost, run_apart
from pipelines.sources.source import PhotoRef, PhotoUnreadableError

INDEX: Final = "ffhq-dataset-v2.json"
_OBJECT: Final = re.compile(rb'\{[^{}]*"file_path"[^{}]*\}')


def find_index(folder: Path) -> str:
    """Return the path of the index in a folder or beside it, where FFHQ's download leaves it; "" if there is none."""
    return next((str(place / INDEX) for place in (folder, folder.parent) if (place / INDEX).is_file()), "")


def read_published(index: str) -> Mapping[str, tuple[str, str]]:
    """Return (file_md5, pixel_md5) by path, such as `images1024x1024/00000/00000.png`."""
    return _read(index, storage.version(index))


def check_published(ref: PhotoRef, data: bytes) -> bytes:
    """Return the data if it is the published file, or another lossless file of the published pixels, or if nothing is promised."""
    if not ref.file_md5 or hashlib.md5(data, usedforsecurity=False).hexdigest() == ref.file_md5:
        return data
    try:
        pixels = run_apart(_pixel_md5, data)
    except ImageRefused as error:
        found = str(error)
    else:
        if pixels == ref.pixel_md5:
            return data
        found = pixels.message if isinstance(pixels, Lost) else "its pixels are others"
    raise PhotoUnreadableError(f"{ref.name} is not the published photo ({found}); expected MD5 {ref.file_md5}; download it again")


def _pixel_md5(data: bytes) -> str:
    return hashlib.md5(decode(data).pixels.tobytes(), usedforsecurity=False).hexdigest()


@lru_cache(maxsize=2)
def _read(index: str, version: str) -> Mapping[str, tuple[str, str]]:
    promised: dict[str, tuple[str, str]] = {}
    with Path(index).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for found in _OBJECT.finditer(text):
            values = json.loads(found.group())
            promised[values["file_path"]] = (values.get("file_md5", ""), values.get("pixel_md5", ""))
    return promised
