"""Several archives by a pattern are one source: the photos of each under its stem; a pattern that names
anything else is one clear line.
"""

import hashlib
import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources import (
    FolderSource,
    PatternSource,
    PhotoSource,
    PhotoUnreadableError,
    TarSource,
    ZipSource,
    open_source,
)
from pipelines.sources.braces import expand_braces
from tests.pipelines.tiny_dataset import build, make_photos


def _zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"{path.stem} {name}")
    return path


def _tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            data = f"{path.stem} {name}".encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _contents(source: PhotoSource) -> dict[str, str]:
    return {ref.name: source.read(ref).decode() for ref in source.refs()}


def test_photos_are_called_after_their_archive_and_sorted_by_the_whole_name(tmp_path: Path) -> None:
    """`a-b/` sorts before `a/` and `a0/` after it, though `a.zip` is neither the second file by name nor
    by stem.
    """
    stems = ("a", "a-b", "a0", "a#1", "näme")
    for stem in stems:
        _zip(tmp_path / f"{stem}.zip", "2.png", "x/1.png", "notes.txt")
    expected = {f"{stem}/{name}": f"{stem} {name}" for stem in stems for name in ("2.png", "x/1.png")}
    found = _contents(open_source(tmp_path / "*.zip"))
    assert found == expected
    assert list(found) == sorted(expected)


def test_zips_and_tars_list_their_members_as_they_do_alone(tmp_path: Path) -> None:
    one, other = _zip(tmp_path / "train_a.zip", "1.png", "2.png"), _tar(tmp_path / "train_b.TAR", "1.png")
    _zip(tmp_path / "val.zip", "1.png")
    source = open_source(f"{tmp_path}/train_?.*")
    alone = [*ZipSource(str(one)).refs(), *TarSource(str(other)).refs()]
    assert [(ref.uri, ref.bytes, ref.fingerprint) for ref in source.refs()] == [
        (ref.uri, ref.bytes, ref.fingerprint) for ref in alone
    ]
    assert list(_contents(source)) == ["train_a/1.png", "train_a/2.png", "train_b/1.png"]
    assert list(_contents(open_source(source.uri, every_file=True))) == list(_contents(source))


def test_the_source_is_small_travels_and_is_opened_again_by_its_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        _tar(tmp_path / f"photos-{number:06d}.tar", "1.png")
    monkeypatch.chdir(tmp_path)
    source = open_source("photos-0000*.tar")
    monkeypatch.chdir("/")
    assert open_source(source.uri) == source
    assert len(pickle.dumps(source)) < 400
    far, refs = pickle.loads(pickle.dumps((source, list(source.refs()))))
    assert [far.read(ref).decode() for ref in refs] == [f"photos-{number:06d} 1.png" for number in range(20)]


def test_the_digest_tells_of_another_member_and_of_another_archive(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", "1.png")
    digests = [open_source(tmp_path / "*.zip").digest()]
    _zip(tmp_path / "b.zip", "1.png")
    digests.append(open_source(tmp_path / "*.zip").digest())
    _zip(tmp_path / "b.zip", "1.png", "2.png")
    digests.append(open_source(tmp_path / "*.zip").digest())
    assert len(set(digests)) == 3


def test_archives_are_listed_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a listing is kept on disk, and of one archive at a time."""
    for stem in "abc":
        _zip(tmp_path / f"{stem}.zip", "1.png", "2.png")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert [len(list(temporary.iterdir())) for _ in open_source(tmp_path / "*.zip").refs()] == [1] * 6
    assert list(temporary.iterdir()) == []


def test_an_archive_that_changes_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", "1.png")
    changing = _zip(tmp_path / "b.zip", "1.png")
    source = open_source(tmp_path / "*.zip")
    one, other = source.refs()
    changing.unlink()
    with pytest.raises(PhotoUnreadableError, match=r"b/1\.png changed in"):
        source.read(other)
    assert source.read(one) == b"a 1.png"


def test_what_is_called_like_a_pattern_is_opened_under_its_name(tmp_path: Path) -> None:
    for name in ("a*.zip", "ab.zip", "[1].zip", "1.zip"):
        _zip(tmp_path / name, "1.png")
    folder = tmp_path / "photos [2024]?"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"x")
    _zip(folder / "c.zip", "1.png")
    assert open_source(tmp_path / "a*.zip") == ZipSource(f"{tmp_path}/a*.zip")
    assert open_source(tmp_path / "[1].zip") == ZipSource(f"{tmp_path}/[1].zip")
    assert open_source(folder) == FolderSource(str(folder))
    assert list(_contents(open_source(folder / "*.zip"))) == ["c/1.png"]
    assert list(_contents(open_source(tmp_path / "[a1][b].zip"))) == ["ab/1.png"]


def test_braces_name_archives_as_a_shell_would(tmp_path: Path) -> None:
    for name in ("00008", "00009", "00010", "00011"):
        _tar(tmp_path / f"{name}.tar", "1.png")
    _tar(tmp_path / "a{b}-1.tar", "1.png")
    assert list(_contents(open_source(tmp_path / "{00008..00010}.tar"))) == [
        f"{number}/1.png" for number in ("00008", "00009", "00010")
    ]
    assert list(_contents(open_source(tmp_path / "{00011,00009}.tar"))) == ["00009/1.png", "00011/1.png"]
    assert list(_contents(open_source(tmp_path / "{00011,0000*}.tar"))) == [
        f"{number}/1.png" for number in ("00008", "00009", "00011")
    ]
    assert list(_contents(open_source(tmp_path / "a{b}-{1..1}.tar"))) == ["a{b}-1/1.png"]
    longer_than_a_name = ",".join(["00008"] * 60)
    assert list(_contents(open_source(f"{tmp_path}/{{{longer_than_a_name}}}.tar"))) == ["00008/1.png"]
    source = open_source(tmp_path / "{00008..00011}.tar")
    assert open_source(source.uri) == source


def test_braces_around_folders_keep_the_folders_apart(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        _tar(tmp_path / folder / "0.tar", "1.png")
    assert list(_contents(open_source(tmp_path / "{val,train}/{0..0}.tar"))) == [
        "train/0/1.png",
        "val/0/1.png",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..10..5}x", ["0x", "5x", "10x"]),
        ("{a..c}", ["a", "b", "c"]),
        ("{a,{b,c}d}{1,2}", ["a1", "a2", "bd1", "bd2", "cd1", "cd2"]),
        ("x{,y}", ["x", "xy"]),
        ("{a}{", ["{a}{"]),
        ("{a}{1..2}", ["{a}1", "{a}2"]),
        ("a}{b,c", ["a}{b,c"]),
    ],
)
def test_braces_are_expanded_as_in_a_shell(text: str, expected: list[str]) -> None:
    assert expand_braces(text) == expected


def test_hidden_archives_are_left_out(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", "1.png")
    _zip(tmp_path / ".a.zip", "1.png")
    assert list(_contents(open_source(tmp_path / "*.zip"))) == ["a/1.png"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "trian_*.zip",
            r"trian_\*\.zip names nothing; .* holds 4 archives, the nearest is train_[ab]\.zip; expected "
            r"some of them",
        ),
        (
            "loose/*.zip",
            r"names nothing; .*/loose holds no \.zip or \.tar; expected archives of photos; check the path",
        ),
        (
            "loose/*.png",
            r"names 1\.png, which is no \.zip or plain \.tar; expected archives only; write \*\.zip or "
            r"\*\.tar",
        ),
        (
            "loos*",
            r"names loose/, which is no \.zip or plain \.tar; .* or name a folder for the photos in it",
        ),
        ("*.gz", r"names photos\.tar\.gz, which is no \.zip or plain \.tar"),
        ("tr*/*.zip", r"/tr\* is not there; expected a folder, with a pattern such as \*\.zip only after it"),
        (
            "val.*",
            r"val\.tar and val\.zip in .* differ in no more than their suffix; expected one; rename the "
            r"other",
        ),
        (
            "val-{0..9}.tar",
            r"/val-0\.tar names nothing, nor 9 more of 10; .* holds 4 archives, the nearest is val\.tar",
        ),
        ("{train_a,trian}.zip", r"/trian\.zip names nothing; .* holds 4 archives"),
        ("{loose,nowhere}/1.tar", r"/nowhere is not there; expected a folder"),
        ("{0..100000}.tar", r"\{0\.\.100000\}.* names more than 100000 archives; expected fewer"),
        ("{0..999}{0..999}.tar", r"names more than 100000 archives"),
    ],
)
def test_a_pattern_that_names_no_archives_is_one_clear_line(
    tmp_path: Path, pattern: str, message: str
) -> None:
    for name in ("train_a.zip", "train_b.zip", "val.zip"):
        _zip(tmp_path / name, "1.png")
    _tar(tmp_path / "val.tar", "1.png")
    (tmp_path / "photos.tar.gz").write_bytes(b"")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "1.png").write_bytes(b"")
    with pytest.raises(UsageError, match=message) as caught:
        open_source(tmp_path / pattern)
    assert "\n" not in str(caught.value)


def test_one_bad_archive_among_many_is_named_and_archives_without_photos_are_named(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", "1.txt")
    _zip(tmp_path / "b.zip")
    with pytest.raises(UsageError, match="holds no images"):
        open_source(tmp_path / "*.zip").digest()
    (tmp_path / "c.zip").write_bytes(b"no zip")
    with pytest.raises(UsageError, match=r"c\.zip is no readable zip"):
        open_source(tmp_path / "c.zip")


@pytest.mark.parametrize("every_file", [False, True])
def test_an_archive_that_cannot_be_listed_costs_no_other(tmp_path: Path, every_file: bool) -> None:
    """No archive at all, an index that is cut or damaged, a tar cut inside of a member or between two."""
    photos = {f"{number}.png": bytes([number]) * 700 for number in range(3)}
    for name in ("a.zip", "cut.zip", "index.zip", "z.zip"):
        _zip(tmp_path / name, *photos)
    for name in ("a.tar", "inside.tar", "between.tar"):
        with tarfile.open(tmp_path / f"{name[:-4]}.t.tar", "w") as tar:
            for photo, data in photos.items():
                info = tarfile.TarInfo(photo)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for name, size in {"inside.t.tar": 1900, "between.t.tar": 1536, "cut.zip": 200}.items():
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:size])
    data = bytearray((tmp_path / "index.zip").read_bytes())
    data[data.rindex(b"PK\x01\x02")] ^= 255
    (tmp_path / "index.zip").write_bytes(data)
    (tmp_path / "none.zip").write_bytes(b"no zip")
    (tmp_path / "none.t.tar").write_bytes(b"no tar" * 100)
    source = open_source(tmp_path / "*", every_file)
    refs = list(source.refs())
    bad = [ref for ref in refs if ref.name.endswith("/")]
    assert [ref.name for ref in bad] == ["between.t/", "cut/", "index/", "inside.t/", "none.t/", "none/"]
    assert [ref.name for ref in refs] == sorted(ref.name for ref in refs)
    whole = [f"{stem}/{photo}" for stem in ("a", "a.t", "z") for photo in photos]
    assert [ref.name for ref in refs if ref not in bad] == sorted(whole)
    for ref in refs:
        if ref in bad:
            with pytest.raises(
                PhotoUnreadableError, match=r"(no readable|cannot be read).*; expected"
            ) as caught:
                source.read(ref)
            assert "\n" not in str(caught.value)
        else:
            source.read(ref)


@pytest.mark.parametrize("inside", ["{key}.png", "images1024x1024/00000/{key}.png"])
def test_ffhq_in_several_zips_is_checked_against_the_index_beside_them(
    inside: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Zips of a thousand each, whose stem is the folder that they replace, or whose members have their
    whole path.
    """
    folder = tmp_path / "images1024x1024"
    folder.mkdir()
    index = {}
    for thousand in ("00000", "01000"):
        name = inside.replace("/00000/", f"/{thousand}/").format(key=thousand)
        _zip(folder / f"{thousand}.zip", name)
        file_md5 = hashlib.md5(f"{thousand} {name}".encode()).hexdigest()
        index[thousand] = {
            "image": {
                "file_path": f"images1024x1024/{thousand}/{thousand}.png",
                "file_md5": file_md5,
                "pixel_md5": "",
            }
        }
    (tmp_path / "ffhq-dataset-v2.json").write_text(json.dumps(index))
    source = open_source(folder / "*.zip")
    assert [ref.file_md5 for ref in source.refs()] == [entry["image"]["file_md5"] for entry in index.values()]
    assert len(_contents(source)) == 2
    assert caplog.messages == []  # nothing is absent, nothing goes unchecked


def test_a_dataset_of_two_zips_is_that_of_one_folder(tmp_path: Path) -> None:
    """Keys are of the photos' own names and splits of their content, so archives change neither."""
    folder = make_photos(tmp_path / "photos", 6)
    (tmp_path / "zips").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        with zipfile.ZipFile(tmp_path / "zips" / f"part_{number % 2}.zip", "a") as archive:
            archive.write(path, path.name)
    assert (
        build(tmp_path / "zips" / "part_*.zip", tmp_path / "of zips").content_id
        == build(folder, tmp_path / "of folder").content_id
    )


def test_archives_on_s3_are_named_by_a_pattern_like_those_on_disk(tmp_path: Path, s3_bucket: str) -> None:
    remote = f"{s3_bucket}/several"
    for name in ("train_a.zip", "train_b.zip", "train_[1].zip", "val.zip"):
        storage.put_file(_zip(tmp_path / name, "1.png", "2.png"), f"{remote}/{name}")
    storage.write_atomic(f"{remote}/train_folder.zips/1.png", b"x")
    source = open_source(f"{remote}/train_?.zip")
    assert source == PatternSource(f"{remote}/train_?.zip")
    assert _contents(source) == _contents(open_source(tmp_path / "train_?.zip"))
    assert source.digest() == open_source(tmp_path / "train_?.zip").digest()
    assert open_source(f"{remote}/train_[1].zip") == ZipSource(f"{remote}/train_[1].zip")
    braces = open_source(f"{remote}/train_{{a..b}}.zip")
    assert _contents(braces) == _contents(source)
    for pattern, message in (
        ("train_{a..c}.zip", r"train_c\.zip names nothing; .* holds 4 archives"),
        ("trian_*.zip", r"names nothing; .* holds 4 archives, the nearest is train_"),
        ("train_f*", r"names train_folder\.zips/, which is no \.zip or plain \.tar"),
        ("nowhere/*.zip", r"nowhere is not there; expected a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(f"{remote}/{pattern}")
