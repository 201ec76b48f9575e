"""Sources of photos: folders, zips, tars, patterns of archives (local or on S3), files, procedural faces.

A source is a small frozen value: the driver lists it, and tasks carry it to workers, which read the photos.
Archives are never extracted, so a member named `../x.png` is only a photo with an odd name. Listings are
sorted by name, and a photo that changes after it was listed is noticed.
"""

import errno
import stat
from pathlib import Path
from typing import Final, Literal

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


_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
"""Errors for a path where nothing is; a pattern with braces may be longer than a name."""


def open_source(uri: str | Path, every_file: bool = False) -> PhotoSource:
    """Open a folder, zip, tar, pattern such as `photos/*.zip`, file, or `synthetic:count=640,seed=0,px=128`.

    All but procedural faces may be on S3. A name with wildcards or braces that exists is no pattern. Hidden
    files, folders of a system such as `__MACOSX` or `@eaDir`, and files without the suffix of an image are
    left out, unless `every_file` asks for a row for each input. Photos are checked against
    `ffhq-dataset-v2.json` if it is in the source or beside it. UsageError if there is nothing to open.
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
            if storage.exists(text):
                return FileSource(text, every_file)
            if is_pattern(text):
                return open_pattern(text, every_file)
            raise UsageError(
                f"{text} is not there or holds no files; expected a folder, a .zip or .tar of photos or a "
                "photo on S3, or several archives as *.zip; check bucket and prefix"
            )
        return RemoteFolderSource(text.rstrip("/"), every_file, find_index(text))
    path = storage.local_path(uri).expanduser().absolute()
    kind = _kind(path)
    if kind == "folder":
        return FolderSource(str(path), every_file, find_index(str(path)))
    if kind == "nothing":
        if is_pattern(str(path)):
            return open_pattern(str(path), every_file)
        raise UsageError(
            f"{path} is not there; expected a folder, a zip, a tar, a photo, or several archives as '*.zip'; "
            "check the path"
        )
    try:
        if looks_like_zip(str(path)):
            check_zip(str(path))
            return ZipSource(str(path), every_file, find_index(str(path)))
        if looks_like_tar(path):
            check_tar(str(path))
            return TarSource(str(path), every_file, find_index(str(path)))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); expected a folder, a zip, a tar or a photo; "
            "check its kind and its rights"
        ) from error
    return FileSource(str(path), every_file)


def _kind(path: Path) -> Literal["folder", "file", "nothing"]:
    """Say what a path is; UsageError if its folder may not be looked into."""
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except OSError as error:
        if error.errno not in _ABSENT:
            raise UsageError(
                f"{path} cannot be looked at ({error.strerror}); expected a folder, a zip, a tar or a photo; "
                "check the rights of its folder"
            ) from error
        return "nothing"
