"""Who may read a restored photo: nobody who may not read the photo."""

import stat
from pathlib import Path
from typing import Final

from pipelines import storage

_ANYBODY: Final = 0o666
_OWNER: Final = 0o600


def file_mode(source_uri: str, photo_uri: str = "") -> int:
    """Permission bits for what is made of a photo, or of the whole input if no photo is named.

    They are not wider than those of the photo's file, and of the folders from it up to the input. The umask
    is taken off when a file is made. An input on S3 has no permission bits, so nothing is taken off for it.
    """
    if storage.is_remote(source_uri):
        return _ANYBODY
    root = storage.local_path(source_uri)
    # a member of an archive is named by the archive, # and its place there
    candidates = [Path(photo_uri), Path(photo_uri.rpartition("#")[0])] if photo_uri else []
    for place in (*candidates, root, root.parent):
        try:
            mode = place.stat().st_mode
        except (OSError, ValueError):
            continue
        is_folder = stat.S_ISDIR(mode)
        return _OWNER | (_ANYBODY & mode & (0o777 if is_folder else _reachable(place, root)))
    return _ANYBODY


def folder_mode(source_uri: str) -> int:
    """Permission bits for the output folder, whose readers may enter it."""
    mode = file_mode(source_uri)
    return mode | (mode & 0o444) >> 2


def _reachable(place: Path, root: Path) -> int:
    """The bits of those who may enter every folder on the way to a file."""
    bits = 0o777
    folders = [folder for folder in place.parents if folder == root or root in folder.parents]
    for folder in folders or [place.parent]:
        mode = folder.stat().st_mode
        for enter, those in ((stat.S_IXGRP, stat.S_IRWXG), (stat.S_IXOTH, stat.S_IRWXO)):
            if not mode & enter:
                bits &= ~those
    return bits
