"""Where photos come from: a folder, a zip or a tar, several of these (local or s3://), one file, or
procedural faces.

Each lists cheaply, any worker reads: a source is a small frozen value, so a task carries it to a worker and
reads there. Names are only names: nothing is ever extracted, and a member called `../x.png` is a photo with
an odd name. Listings are sorted by name, and a photo that changes after it was listed is noticed.
"""

from pathlib import Path

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources.archive import ZipSource, check_zip, looks_like_zip
from pipelines.sources.files import FileSource, FolderSource, RemoteFolderSource
from pipelines.sources.pattern import PatternSource, is_pattern, open_pattern
from pipelines.sources.published import find_index
from pipelines.sources.source import IMAGE_SUFFIXES, PhotoRef, PhotoSource, PhotoUnreadableError
from pipelines.sources.synthetic import SYNTHETIC, SyntheticSource, parse_synthetic
from pipelines.sources.tar import TarSource, check_tar, looks_like_tar

__all__ = [
    "IMAGE_SUFFIXES",
    "FileSource",
    "FolderSource",
    "PatternSource",
    "PhotoRef",
    "PhotoSource",
    "PhotoUnreadableError",
    "RemoteFolderSource",
    "SyntheticSource",
    "TarSource",
    "ZipSource",
    "open_source",
]


def open_source(uri: str | Path, every_file: bool = False) -> PhotoSource:
    """Open a folder, zip or tar, several as `photos/*.zip` (local or `s3://`), one local file, or
    `synthetic:count=640,seed=0,px=128`.

    What is there under the very name that is given goes before a pattern. Hidden files, `__MACOSX` and what
    has no image's suffix are left out, unless `every_file` wants a row for each input. FFHQ with its
    `ffhq-dataset-v2.json` in it or beside it, be it a folder, a zip or a tar, is checked against that.
    """
    text = str(uri)
    if text.startswith(SYNTHETIC):
        return parse_synthetic(text)
    if storage.is_remote(text):
        if text.lower().endswith(".zip") and storage.exists(text):
            check_zip(text)
            return ZipSource(text, every_file, find_index(text))
        if text.lower().endswith(".tar") and storage.exists(text):
            check_tar(text)
            return TarSource(text, every_file, find_index(text))
        if not storage.is_dir(text):
            if is_pattern(text):
                return open_pattern(text, every_file)
            raise UsageError(
                f"{text} is not there or holds no files; expected a folder or a .zip or .tar of photos on "
                "S3, or several as *.zip; "
                f"check bucket and prefix"
            )
        return RemoteFolderSource(text.rstrip("/"), every_file, find_index(text))
    path = storage.local_path(uri).expanduser().absolute()
    if path.is_dir():
        return FolderSource(str(path), every_file, find_index(str(path)))
    if not path.exists():
        if is_pattern(str(path)):
            return open_pattern(str(path), every_file)
        raise UsageError(
            f"{path} is not there; expected a folder, a zip, a tar, a photo, or several archives as '*.zip'; "
            "check the path"
        )
    if looks_like_zip(str(path)):
        check_zip(str(path))
        return ZipSource(str(path), every_file, find_index(str(path)))
    if looks_like_tar(path):
        check_tar(str(path))
        return TarSource(str(path), every_file, find_index(str(path)))
    return FileSource(str(path), every_file)
