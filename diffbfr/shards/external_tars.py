"""Tars that another program wrote, such as webdataset's `TarWriter`: indexed once, then read by key.

The sha256 of every file is recorded when it is indexed, so a later change is detected. A name is split as in
webdataset: the key ends at the first dot of the file's own name and includes its folder. Images in such tars
are untrusted: decode them with `images.decode`.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.shards.dataset import ColumnIndex, ShardedDataset
from diffbfr.shards.schema import ColumnInfo, DatasetInfo, Member, Sample, ShardDamagedError, Split
from diffbfr.shards.tar_headers import TarDamagedError, read_entries

_END: Final = bytes(1024)


def index_tars(root: Path | str, column: str) -> list[Member]:
    """List every file of the tars in the folder `column` of `root`, sorted by key.

    The names of a key are in the order in which the first key has them. Raises UsageError unless every key
    has the same names, each once, and `ShardDamagedError` for a tar without an end, which `tarfile` and
    webdataset would read as a shorter one.
    """
    tars = sorted((Path(root) / column).glob("*.tar"))
    found: dict[str, dict[str, Member]] = {}
    for path in tars:
        for member in _members(path, column):
            names = found.setdefault(member.key, {})
            if member.name in names:
                raise UsageError(
                    f"{path} holds {member.key}.{member.name}, and {names[member.name].tar} too; expected it "
                    "once; remove one"
                )
            names[member.name] = member
    if not found:
        raise UsageError(
            f"{Path(root) / column} has {len(tars)} tars and no file with a key in them; expected some; "
            "correct the folder"
        )
    first = next(iter(found.values()))
    for key, names in found.items():
        if names.keys() != first.keys():
            raise UsageError(
                f"{key} in {next(iter(names.values())).tar} has {', '.join(names)}; expected "
                f"{', '.join(first)} as the others"
            )
    members: list[Member] = []
    for key in sorted(found):
        members.extend(found[key][name] for name in first)
    return members


def open_tars(root: Path | str, column: str, split: Split = "train") -> ShardedDataset:
    """Open a folder of such tars as a dataset of one column, whose samples have a key and a split only."""
    members = index_tars(root, column)
    names = tuple(dict.fromkeys(member.name for member in members))
    keys = [member.key for member in members[:: len(names)]]
    index = ColumnIndex.of(ColumnInfo(column, names), keys, members)
    content = hashlib.sha256(
        "".join(f"{member.key}.{member.name}\0{member.sha256}\n" for member in members).encode()
    ).hexdigest()
    samples = [Sample(key, split, "", 0, "", 0, 0, "", "", ()) for key in keys]
    counts = {f"num_{name}": len(keys) if name == split else 0 for name in ("train", "val", "test")}
    info = DatasetInfo(
        hq_px=0,
        lq_px=0,
        variants=0,
        shard_size=0,
        num_shards=len(index.tars),
        num_samples=len(keys),
        **counts,
        num_quarantined=0,
        content_id=content,
        archive_id="",
        recipe_digest="",
        source=str(root),
    )
    return ShardedDataset(root, info, samples, {column: index})


def _members(path: Path, column: str) -> Iterator[Member]:
    """Yield the files of one tar that have a key, in the order of the tar."""
    if not path.is_file():
        raise ShardDamagedError(f"{path} is no regular file; expected a whole tar; make it again")
    try:
        with path.open("rb") as file:
            for entry in read_entries(file):
                folder, slash, base = entry.name.rpartition("/")
                stem, dot, name = base.partition(".")
                if entry.kind != "file" or not stem or not dot:
                    continue
                file.seek(entry.place)
                digest = hashlib.sha256(file.read(entry.num_bytes)).hexdigest()
                yield Member(
                    f"{folder}{slash}{stem}",
                    name,
                    column,
                    f"{column}/{path.name}",
                    entry.place,
                    entry.num_bytes,
                    digest,
                )
            file.seek(-min(len(_END), file.seek(0, 2)), 2)
            end = file.read()
    except (TarDamagedError, OSError) as error:
        raise ShardDamagedError(
            f"{path} cannot be read ({error}); expected a whole tar; make it again"
        ) from error
    if end != _END:
        raise ShardDamagedError(
            f"{path} ends without the two empty blocks of a tar's end; expected it whole; make it again"
        )
