"""Inputs that are no photos by their name: side files, files and folders of desktops and NAS, archives.

Real archives hold them beside the photos, and nobody wants them restored or counted as damaged. Each is
listed with the reason why it is left out; a folder of the system is one input, whatever it holds.
"""

import posixpath
import re
from types import MappingProxyType
from typing import Final

from pipelines.sources.source import is_photo

SYSTEM_FOLDER: Final = "system_folder"
SYSTEM_FILE: Final = "system_file"
SIDE_FILE: Final = "side_file"
VIDEO: Final = "video"
ARCHIVE: Final = "archive"
FOLDER_MARKER: Final = "folder_marker"

MESSAGES: Final = MappingProxyType(
    {
        SYSTEM_FOLDER: "a folder that a system keeps for itself (thumbnails, trash, snapshots), not entered",
        SYSTEM_FILE: "a file that a system keeps for itself, no photo",
        SIDE_FILE: "a file that goes with photos (text, documents, metadata, checksums), no photo",
        VIDEO: "a video or a sound, no photo",
        ARCHIVE: "an archive inside the input, not opened; name it as an input of its own",
        FOLDER_MARKER: "an empty object that stands for a folder, no photo",
    }
)
"""What is skipped for each reason, as the ledger says it."""

_SYSTEM_FOLDER_NAMES: Final = (
    "__macosx .appledouble .appledb .appledesktop .spotlight-v100 .fseventsd .documentrevisions-v100 "
    ".temporaryitems .mobilebackups .trashes .trash $recycle.bin recycler found.000 @eadir @tmp @sharebin "
    "#recycle #snapshot @recycle @recently-snapshot .@__thumb .@__qini .@__comments .@upload_cache "
    ".syncthing .stfolder .stversions .dropbox.cache .thumbnails .thumbs .thumb .xvpics lost+found "
    ".snapshot .snapshots .zfs .~tmp~ .picasaoriginals .comments .git .hg .svn .dvc __pycache__ "
    ".ipynb_checkpoints .cache .diffbfr"
)
_SYSTEM_FOLDERS: Final = frozenset(_SYSTEM_FOLDER_NAMES.split()) | {
    "system volume information",
    "network trash folder",
    "temporary items",
}
_TRASH: Final = re.compile(r"\.trash-[0-9]+")
_SYSTEM_FILE_NAMES: Final = (
    ".ds_store .localized .apdisk .volumeicon.icns .com.apple.timemachine.donotpresent .directory thumbs.db "
    "ehthumbs.db ehthumbs_vista.db desktop.ini autorun.inf .nomedia .picasa.ini picasa.ini zbthumbnail.info "
    ".bridgecache .bridgecachet .bridgesort .bridgelabelsandratings .dropbox .dropbox.attr .stignore "
    ".gitattributes .gitignore .gitkeep .keep .dvcignore .hidden"
)
_SYSTEM_FILES: Final = frozenset(_SYSTEM_FILE_NAMES.split()) | {"icon\r"}
_SYSTEM_PREFIXES: Final = ("._", "synofile_thumb_", ".sync_", ".~lock.", ".nfs0000", "~$")
_SIDE: Final = (
    ".json .jsonl .txt .csv .tsv .xml .xmp .yaml .yml .toml .html .htm .md .ini .cfg .log .nfo .url .lnk "
    ".aae .thm .ctg .ind .pp3 .dop .cos .cls .npy .npz .parquet .md5 .sha1 .sha256 .sfv .par2 "
    ".pdf .rtf .doc .docx .xls .xlsx .ppt .pptx .odt .ods .odp .pages .numbers .eml .msg"
)
_SIDE_FILES: Final = frozenset(
    ("readme", "license", "licence", "copying", "md5sums", "sha1sums", "sha256sums")
)
_VIDEOS: Final = (
    ".mov .mp4 .m4v .avi .mts .m2ts .3gp .3g2 .mkv .webm .mpg .mpeg .wmv .flv .insv .lrv .wav .mp3 .m4a "
    ".aac .flac .ogg .amr"
)
_ARCHIVES: Final = ".zip .tar .tgz .gz .tbz2 .bz2 .txz .xz .zst .7z .rar .lz4 .iso .dmg .cbz .cbr"
_BY_SUFFIX: Final = MappingProxyType(
    {
        **dict.fromkeys(_SIDE.split(), SIDE_FILE),
        **dict.fromkeys(_VIDEOS.split(), VIDEO),
        **dict.fromkeys(_ARCHIVES.split(), ARCHIVE),
    }
)


def is_system_folder(part: str) -> bool:
    """True if a folder of this name belongs to a desktop, a NAS or a file system, not to its user."""
    part = part.lower()
    return part in _SYSTEM_FOLDERS or _TRASH.fullmatch(part) is not None


def system_folder(name: str) -> str:
    """Return the outermost system folder of a name, with a slash at its end; "" if it lies in none."""
    lower = name.lower()
    parts = lower.replace("\\", "/").split("/")[:-1]
    if _SYSTEM_FOLDERS.isdisjoint(parts) and ".trash-" not in lower:  # nearly every name ends here
        return ""
    end = 0
    for part in parts:
        end += len(part) + 1
        if is_system_folder(part):
            return f"{name[: end - 1]}/"
    return ""


def skip_reason(name: str) -> str:
    """Return why a file is no photo, one of `MESSAGES`; "" if it may be one. Only its own name counts."""
    file = name.replace("\\", "/").rpartition("/")[2].lower()
    if file in _SYSTEM_FILES or file.startswith(_SYSTEM_PREFIXES):
        return SYSTEM_FILE
    return SIDE_FILE if file in _SIDE_FILES else _BY_SUFFIX.get(posixpath.splitext(file)[1], "")


class Listing:
    """Decides which files of a source are listed. `every_file` asks for a row for each input."""

    def __init__(self, every_file: bool) -> None:
        self._every_file = every_file
        self._folders: set[str] = set()

    def place_of(self, name: str) -> tuple[str, str] | None:
        """Return the name under which a file is listed and why it is skipped; None if it is not listed.

        The first file in a system folder stands for the whole folder.
        """
        folder = system_folder(name)
        if folder:
            if not self._every_file or folder in self._folders:
                return None
            self._folders.add(folder)
            return folder, SYSTEM_FOLDER
        if self._every_file:
            return name, skip_reason(name)
        return (name, "") if is_photo(name) else None
