"""Every source lists the same photos in the same order, reads them in any process, and says clearly why it
cannot.
"""

import errno
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.errors import UsageError
from diffbfr.images import decode
from diffbfr.synthetic import render_face
from pipelines import storage
from pipelines.sources import PhotoSource, PhotoUnreadableError, open_source
from pipelines.storage import files, s3

PHOTOS = {
    "b.png": b"one",
    "a/2.JPG": b"two",
    "a/1.jpeg": b"three",
    "näme/été 人.webp": b"four",
    "a.webp": b"",
}
OTHERS = {
    ".hidden.png": b"x",
    ".git/c.png": b"x",
    "__MACOSX/._b.png": b"x",
    "notes.txt": b"x",
    "a/README": b"x",
}
SKIPPED = {
    ".git/": "system_folder",
    "__MACOSX/": "system_folder",
    "a/README": "side_file",
    "notes.txt": "side_file",
}


def _folder(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def _contents(source: PhotoSource) -> dict[str, bytes]:
    return {ref.name: source.read(ref) for ref in source.refs() if not ref.skipped}


def _skipped(source: PhotoSource) -> dict[str, str]:
    return {ref.name: ref.skipped for ref in source.refs() if ref.skipped}


@pytest.fixture(params=["folder", "zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    files = {**OTHERS, **PHOTOS}
    return (
        _folder(tmp_path / "photos", files)
        if request.param == "folder"
        else _zip(tmp_path / "photos.zip", files)
    )


def test_a_listing_is_sorted_by_name_and_leaves_out_what_is_no_photo(place: Path) -> None:
    source = open_source(place)
    refs = list(source.refs())
    assert [ref.name for ref in refs] == sorted(PHOTOS)
    assert [ref.bytes for ref in refs] == [len(PHOTOS[ref.name]) for ref in refs]
    assert _contents(source) == PHOTOS


def test_every_file_lists_everything(place: Path) -> None:
    source = open_source(place, every_file=True)
    assert _contents(source) == {**PHOTOS, ".hidden.png": b"x"}
    assert _skipped(source) == SKIPPED


def test_a_source_and_its_refs_travel_to_a_worker(place: Path) -> None:
    source, refs = pickle.loads(pickle.dumps((open_source(place), list(open_source(place).refs()))))
    assert {ref.name: source.read(ref) for ref in refs} == PHOTOS


def test_the_digest_of_a_listing_changes_with_a_name_or_a_content(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "photos", PHOTOS)
    before = open_source(folder).digest()
    assert open_source(str(folder) + "/").digest() == before
    (folder / "notes.txt").write_bytes(b"not a photo")
    assert open_source(folder).digest() == before
    os.utime(folder / "b.png", ns=(1, 1))
    assert open_source(folder).digest() != before


def test_a_photo_that_changes_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "photos", PHOTOS)
    source = open_source(folder)
    ref = next(ref for ref in source.refs() if ref.name == "b.png")
    (folder / "b.png").write_bytes(b"other")
    with pytest.raises(PhotoUnreadableError, match=r"b\.png changed after it was listed"):
        source.read(ref)
    (folder / "b.png").unlink()
    with pytest.raises(PhotoUnreadableError, match=r"b\.png cannot be read"):
        source.read(ref)


def test_a_zip_that_changes_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    path = _zip(tmp_path / "photos.zip", PHOTOS)
    source = open_source(path)
    refs = list(source.refs())
    _zip(path, {name: data + b"!" for name, data in PHOTOS.items()})
    with pytest.raises(PhotoUnreadableError, match="changed in"):
        source.read(refs[0])


def test_linked_folders_are_entered_once_and_a_broken_link_is_an_unreadable_photo(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "photos", {"a/1.png": b"one"})
    other = _folder(tmp_path / "elsewhere", {"2.png": b"two"})
    (folder / "linked").symlink_to(other)
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "broken.png").symlink_to(folder / "nothing")
    source = open_source(folder)
    refs = {ref.name: ref for ref in source.refs()}
    assert sorted(refs) == ["a/1.png", "broken.png", "linked/2.png"]
    assert source.read(refs["linked/2.png"]) == b"two"
    with pytest.raises(PhotoUnreadableError, match=r"broken\.png cannot be read: it is a link to a file"):
        source.read(refs["broken.png"])


def test_a_pipe_named_like_a_photo_does_not_hang_its_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path)
    with pytest.raises(PhotoUnreadableError, match="no regular file"):
        source.read(next(source.refs()))


def test_a_name_that_is_no_utf8_is_escaped_and_still_read(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"latin")
    source = open_source(tmp_path)
    ref = next(source.refs())
    assert ref.name == "caf\\xe9.png"
    assert source.read(ref) == b"latin"
    assert source.digest()


def test_one_photo_is_a_source_of_one(tmp_path: Path) -> None:
    photo = _folder(tmp_path, {"me.png": b"me"}) / "me.png"
    assert _contents(open_source(photo)) == {"me.png": b"me"}
    assert _contents(open_source(f"file://{photo}")) == {"me.png": b"me"}


def test_names_in_a_zip_are_read_as_utf8_or_cp437(tmp_path: Path) -> None:
    path = tmp_path / "names.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("AAAA.png", "BBB.png", "flagged-é.png"):
            archive.writestr(name, name.lower().encode())
    raw = (
        path.read_bytes().replace(b"AAAA.png", "éé.png".encode()).replace(b"BBB.png", b"b\x82b.png")
    )  # e9 is 0x82 in cp437
    path.write_bytes(raw)
    assert sorted(ref.name for ref in open_source(path).refs()) == ["béb.png", "flagged-é.png", "éé.png"]
    assert _contents(open_source(path))["éé.png"] == b"aaaa.png"


def test_odd_names_in_a_zip_are_only_names(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    names = ["../../escape.png", "/etc/absolute.png", "c\\back\\slash.png"]
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate(names):
            archive.writestr(name, str(index).encode())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(names[0], b"3")
        archive.mkdir("folder.png")
    contents = _contents(open_source(path))
    assert contents == {names[0]: b"0", f"{names[0]}#2": b"3", names[1]: b"1", names[2]: b"2"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["odd.zip"]


def test_a_damaged_member_is_unreadable_and_its_neighbours_are_not(tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "photos.zip", {"a.png": b"a" * 100, "b.png": bytes(range(256)) * 9, "c.png": b"c" * 100}
    )
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("b.png").header_offset + 40
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    source = open_source(path)
    a, b, c = source.refs()
    assert (source.read(a), source.read(c)) == (b"a" * 100, b"c" * 100)
    with pytest.raises(PhotoUnreadableError, match=r"b\.png in .* cannot be read"):
        source.read(b)


def test_an_encrypted_member_is_unreadable(tmp_path: Path) -> None:
    path = _zip(tmp_path / "locked.zip", {"a.png": b"secret"})
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        flags = data.index(magic) + at
        data[flags : flags + 2] = struct.pack("<H", 1)
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(PhotoUnreadableError, match="encrypted"):
        source.read(next(source.refs()))


def test_a_photo_with_a_zip_at_its_end_is_a_photo(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("inside.png", b"x")
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture, "PNG")
    (tmp_path / "both.png").write_bytes(picture.getvalue() + inner.getvalue())
    assert [ref.name for ref in open_source(tmp_path / "both.png").refs()] == ["both.png"]


def test_a_procedural_face_is_the_one_that_its_number_names() -> None:
    source = open_source("synthetic:count=3,seed=2,px=32")
    refs = list(source.refs())
    assert [ref.name for ref in refs] == [
        "synthetic-2-000000.png",
        "synthetic-2-000001.png",
        "synthetic-2-000002.png",
    ]
    np.testing.assert_array_equal(decode(source.read(refs[1])).pixels, render_face(2_000_001, 32).pixels)


def test_the_bytes_of_procedural_faces_are_frozen() -> None:
    """They decide the splits: other bytes, and faces that the packaged cascade has learnt from would be
    among its held-out ones.
    """
    digests = {
        name: hashlib.sha256(data).hexdigest()[:16]
        for name, data in _contents(open_source("synthetic:count=2,px=128")).items()
    }
    assert digests == {
        "synthetic-0-000000.png": "b4bb0fe0131cd3b8",
        "synthetic-0-000001.png": "55154cd3a5834d03",
    }


def test_procedural_options_have_defaults_and_any_order() -> None:
    assert open_source("synthetic:") == open_source("synthetic:px=128, count=640,seed=0")
    assert open_source("synthetic:count=5").uri == "synthetic:count=5,seed=0,px=128"
    assert open_source(open_source("synthetic:count=5").uri) == open_source("synthetic:count=5")
    assert open_source("synthetic:count=5").digest() != open_source("synthetic:count=6").digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synthetic:cuont=3", "nearest is 'count'"),
        ("synthetic:size=3", "nearest is 'seed'"),
        ("synthetic:count=three", r"count='three'; expected a whole number in 1\.\.1000000"),
        ("synthetic:count=0", "count='0'"),
        ("synthetic:px=1024", r"whole number in 16\.\.512"),
        ("synthetic:px", "px=''"),
        ("synthetic:seed=-1", "seed='-1'"),
    ],
)
def test_a_bad_procedural_spec_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        open_source(text)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_a_bad_zip_and_an_unknown_scheme_are_clear_lines(tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(_zip(tmp_path / "whole.zip", PHOTOS).read_bytes()[:-40])
    for place, message in (
        (tmp_path / "nowhere", "nowhere is not there"),
        (tmp_path / "cut.zip", "no readable zip"),
        ("gopher://photos", "is not on this machine's disks"),
    ):
        with pytest.raises(UsageError, match=message) as raised:
            open_source(place)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"x"}, {".hidden.png": b"x"}])
def test_a_place_without_images_is_a_usage_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    for source in (
        open_source(_folder(tmp_path / "photos", files)),
        open_source(_zip(tmp_path / "photos.zip", files)),
    ):
        with pytest.raises(UsageError, match="holds no images"):
            source.digest()


def test_a_photo_on_s3_is_a_source_of_one_photo(s3_bucket: str) -> None:
    place = f"{s3_bucket}/single/a b.png"
    storage.write_atomic(place, b"first")
    source = open_source(place)
    (ref,) = source.refs()
    assert (ref.name, ref.bytes) == ("a b.png", 5)
    assert source.read(ref) == b"first"
    storage.write_atomic(place, b"other")
    with pytest.raises(PhotoUnreadableError, match="changed after it was listed"):
        source.read(ref)
    with pytest.raises(UsageError, match=r"b\.png is not there .* or a photo on S3"):
        open_source(f"{s3_bucket}/single/b.png")


def test_a_zip_on_s3_is_read_member_by_member_like_one_on_disk(tmp_path: Path, s3_bucket: str) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("b/2.png", b"two")
        archive.writestr("a.png", b"one")
    remote = f"{s3_bucket}/zips/photos.zip"
    storage.write_atomic(remote, (tmp_path / "photos.zip").read_bytes())
    of_disk, of_s3 = open_source(tmp_path / "photos.zip"), open_source(remote)

    assert [(ref.name, of_s3.read(ref)) for ref in of_s3.refs()] == [("a.png", b"one"), ("b/2.png", b"two")]
    assert of_s3.digest() == of_disk.digest()
    (stale, *_) = of_s3.refs()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.png", b"another")
    storage.write_atomic(remote, (tmp_path / "other.zip").read_bytes())
    with pytest.raises(PhotoUnreadableError, match="changed"):
        of_s3.read(stale)
    storage.write_atomic(remote, b"no zip")
    with pytest.raises(UsageError, match="no readable zip"):
        open_source(remote)


def test_whole_names_are_sorted_where_a_folder_and_a_file_begin_alike(tmp_path: Path) -> None:
    names = ["a-b/1.png", "a.png", "a/1.png", "a/b.png", "a/b/1.png", "a0.png", "ab.png"]
    folder = _folder(tmp_path / "photos", dict.fromkeys(names, b"x"))
    assert [ref.name for ref in open_source(folder).refs()] == sorted(names)


def _tar(path: Path, files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_lists_and_reads_its_photos_sorted_by_name(tmp_path: Path, tar_format: int) -> None:
    files = {**OTHERS, **PHOTOS, "x" * 90 + "/long.png": b"long" * 200}
    if tar_format != tarfile.USTAR_FORMAT:
        files["é" * 150 + ".png"] = b"longer than a header's field"
    source = open_source(_tar(tmp_path / "photos.tar", files, tar_format))
    wanted = {name: data for name, data in files.items() if name not in OTHERS}
    assert [ref.name for ref in source.refs()] == sorted(wanted)
    assert _contents(pickle.loads(pickle.dumps(source))) == wanted
    every = open_source(tmp_path / "photos.tar", every_file=True)
    assert _contents(every) == {**wanted, ".hidden.png": b"x"}
    assert _skipped(every) == SKIPPED


def test_a_tar_that_webdataset_wrote_is_a_source(tmp_path: Path) -> None:
    import webdataset as wds

    faces = {f"{number:05d}": render_face(number, 16).pixels for number in range(3)}
    with (
        (tmp_path / "000000.tar").open("wb") as file,
        wds.TarWriter(file) as writer,
    ):  # by name it may refuse local files
        for key, pixels in faces.items():
            writer.write({"__key__": f"faces/{key}", "png": Image.fromarray(pixels), "json": {"key": key}})
    contents = _contents(open_source(tmp_path / "000000.tar"))
    assert sorted(contents) == [f"faces/{key}.png" for key in faces]
    for key, pixels in faces.items():
        np.testing.assert_array_equal(decode(contents[f"faces/{key}.png"]).pixels, pixels)


def test_links_in_a_tar_are_photos_that_cannot_be_read_and_equal_names_stay_apart(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        for data in (b"first", b"second"):
            member = tarfile.TarInfo("../a.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = open_source(tmp_path / "odd.tar")
    refs = {ref.name: ref for ref in source.refs()}
    assert [source.read(refs[name]) for name in ("../a.png", "../a.png#2")] == [b"first", b"second"]
    with pytest.raises(PhotoUnreadableError, match=r"link\.png in .* is a link"):
        source.read(refs["link.png"])


def test_every_cut_of_a_tar_is_noticed_also_between_two_members(tmp_path: Path) -> None:
    whole = _tar(tmp_path / "whole.tar", {"a.png": b"a" * 600, "b.png": b"b" * 100}).read_bytes()
    cut = tmp_path / "cut.tar"
    end = 512 + 1024 + 512 + 512
    for size in range(0, end + 512, 64):
        cut.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"expected a (whole|plain, uncompressed) tar"):
            list(open_source(cut).refs())
    cut.write_bytes(whole[: end + 512])
    assert len(list(open_source(cut).refs())) == 2


def test_a_tar_that_changes_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    path = _tar(tmp_path / "photos.tar", PHOTOS)
    source = open_source(path)
    refs = list(source.refs())
    _tar(path, {name: data + b"!" for name, data in PHOTOS.items()})
    with pytest.raises(PhotoUnreadableError, match="changed after it was listed"):
        source.read(refs[0])
    path.unlink()
    with pytest.raises(PhotoUnreadableError, match="is gone"):
        source.read(refs[0])


def test_a_compressed_tar_is_refused_in_one_line(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(UsageError, match="expected a plain, uncompressed tar") as caught:
        open_source(tmp_path / "photos.tar.gz")
    assert "\n" not in str(caught.value)


def test_a_tar_on_s3_is_read_member_by_member_like_one_on_disk(tmp_path: Path, s3_bucket: str) -> None:
    path = _tar(tmp_path / "photos.tar", PHOTOS)
    remote = f"{s3_bucket}/tars/photos.tar"
    storage.write_atomic(remote, path.read_bytes())
    source = open_source(remote)
    assert _contents(source) == PHOTOS
    refs = list(source.refs())
    storage.write_atomic(remote, _tar(path, {**PHOTOS, "z.png": b"more"}).read_bytes())
    with pytest.raises(PhotoUnreadableError, match="changed after it was listed"):
        source.read(refs[0])


def test_a_folder_on_s3_is_listed_page_by_page_in_order(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a-b/1.png", "a.png", "a/1.png", "a/b/1.png", "née.png", "été 人.png", "😀.png"]
    for name in names:
        storage.write_atomic(f"{s3_bucket}/pages/{name}", name.encode())
    client = s3.connect()
    pages: list[object] = []

    def two_at_a_time(method: str, **options: object) -> object:
        pages.append(client.call_s3(method, MaxKeys=2, **options))
        return pages[-1]

    monkeypatch.setattr(
        files, "connect", lambda: type("Client", (), {"call_s3": staticmethod(two_at_a_time)})
    )
    assert [entry.path for entry in storage.walk(f"{s3_bucket}/pages")] == sorted(names)
    assert len(pages) == 2 * 4  # a listing has no digest: each page is read twice


def test_hard_links_in_a_tar_have_the_content_of_the_member_before_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "hard.tar", "w") as archive:

        def add(name: str, data: bytes | None = None, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data or b"")
            if link:
                member.type, member.linkname = tarfile.LNKTYPE, link
            archive.addfile(member, io.BytesIO(data) if data else None)

        add("./2010/1.png", b"first")
        add("./family/aunt.png", link="./2010/1.png")
        add("again.png", link="family/aunt.png")
        add("./2010/1.png", b"second")
        add("later.png", link="/2010/1.png")
        add("early.png", link="last.png")
        add("last.png", b"last")
        add("side.png", link="nothing.png")
    source = open_source(tmp_path / "hard.tar")
    refs = {ref.name: ref for ref in source.refs()}
    for name in ("early.png", "side.png"):
        with pytest.raises(PhotoUnreadableError, match="a hard link to something that is not before it"):
            source.read(refs.pop(name))
    assert {name: source.read(ref) for name, ref in refs.items()} == {
        "./2010/1.png": b"first",
        "./2010/1.png#2": b"second",
        "./family/aunt.png": b"first",
        "again.png": b"first",
        "last.png": b"last",
        "later.png": b"second",
    }


def test_tars_joined_by_cat_are_one_tar_and_other_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    one = _tar(tmp_path / "one.tar", {"a.png": b"one", "b.png": b"two"}).read_bytes()
    other = _tar(tmp_path / "other.tar", {"b.png": b"three", "c.png": b"four"}).read_bytes()
    joined = tmp_path / "joined.tar"
    expected = {"a.png": b"one", "b.png": b"two", "b.png#2": b"three", "c.png": b"four"}
    for zeros in (0, 512, 512 * 300):  # what different programs pad with
        joined.write_bytes(one + bytes(zeros) + other)
        assert _contents(open_source(joined)) == expected
    joined.write_bytes(one.rstrip(b"\0").ljust(2048, b"\0") + other)  # the first without its end mark
    assert _contents(open_source(joined)) == expected
    joined.write_bytes(one + b"no header" * 100)
    with pytest.raises(UsageError, match=r"what follows its end mark at byte \d+ is no tar"):
        list(open_source(joined).refs())
    joined.write_bytes(one + other[:1500])
    with pytest.raises(UsageError, match="so it was cut"):
        list(open_source(joined).refs())


def _sparse_tar(path: Path, layout: str, content: bytes, pieces: list[tuple[int, int]]) -> Path:
    """Write a member as GNU tar would in one of its four ways to store files with holes."""
    stored = b"".join(content[offset : offset + size] for offset, size in pieces)
    numbers = [number for piece in pieces for number in piece]
    info = tarfile.TarInfo("GNUSparseFile.0/s.png" if layout == "1.0" else "s.png")
    if layout == "old":
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[124:136] = b"%011o\0" % len(stored)
        block[156:157] = b"S"
        texts = [b"%011o\0" % number for number in numbers]
        block[386 : 386 + 96] = b"".join(texts[:8]).ljust(96, b"\0")
        block[482], block[483:495] = len(texts) > 8, b"%011o\0" % len(content)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        more = b"".join(texts[8:]).ljust(512, b"\0") if len(texts) > 8 else b""
        path.write_bytes(bytes(block) + more + stored + bytes(-len(stored) % 512 + 1024))
        return path
    if layout == "0.1":
        headers = {"GNU.sparse.size": str(len(content)), "GNU.sparse.map": ",".join(map(str, numbers))}
    else:
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.png"}
        headers["GNU.sparse.realsize"] = str(len(content))
        sparse_map = "".join(f"{number}\n" for number in (len(pieces), *numbers)).encode()
        stored = sparse_map + bytes(-len(sparse_map) % 512) + stored
    info.pax_headers, info.size = headers, len(stored)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(stored))
    return path


@pytest.mark.parametrize("layout", ["old", "0.1", "1.0"])
@pytest.mark.parametrize("num_pieces", [1, 3, 20])
def test_a_sparse_member_is_read_with_its_holes(tmp_path: Path, layout: str, num_pieces: int) -> None:
    content = bytearray(num_pieces * 2000 + 77)
    pieces = [(number * 2000 + 100, 700) for number in range(num_pieces)]
    for offset, size in pieces:
        content[offset : offset + size] = bytes([1 + offset % 250]) * size
    path = _sparse_tar(tmp_path / "a.tar", layout, bytes(content), pieces)
    assert _contents(open_source(path)) == {"s.png": bytes(content)}


def test_folders_in_a_zip_of_powershell_are_no_inputs(tmp_path: Path) -> None:
    _zip(
        tmp_path / "dotnet.zip",
        {"Album\\": b"", "Album\\a.jpg": b"a", "b/": b"", "c\\d\\": b"", "e.png/": b"x"},
    )
    source = open_source(tmp_path / "dotnet.zip", every_file=True)
    assert _contents(source) == {"Album\\a.jpg": b"a", "e.png/": b"x"}


SYSTEM_FOLDERS = (
    "@eaDir",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    ".thumbnails",
    "System Volume Information",
    "lost+found",
    ".Trash-1000",
    ".Trashes",
    ".Spotlight-V100",
    ".fseventsd",
    "__MACOSX",
    "@Recently-Snapshot",
    ".AppleDouble",
)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_folders_of_a_system_are_one_skipped_input_each_and_not_entered(tmp_path: Path, kind: str) -> None:
    photos = {f"album/{folder}/deep/{n}.jpg": b"x" for folder in SYSTEM_FOLDERS for n in range(2)}
    photos |= {"album/eaDir/1.jpg": b"photo", "lost+found.jpg": b"photo"}
    make = {"folder": _folder, "zip": _zip, "tar": _tar}[kind]
    place = make(tmp_path / f"photos.{kind}", photos)
    expected = {"album/eaDir/1.jpg": b"photo", "lost+found.jpg": b"photo"}
    assert _contents(open_source(place)) == expected
    source = open_source(place, every_file=True)
    assert _contents(source) == expected
    assert _skipped(source) == {f"album/{folder}/": "system_folder" for folder in SYSTEM_FOLDERS}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("00000.json", "side_file"),
        ("a/00000.TXT", "side_file"),
        ("IMG_1.AAE", "side_file"),
        ("IMG_1.jpg.xmp", "side_file"),
        ("Album/letter.PDF", "side_file"),
        ("Album/notes.docx", "side_file"),
        ("IMG_1.MOV", "video"),
        (".DS_Store", "system_file"),
        ("a/._IMG_1.jpg", "system_file"),
        ("Thumbs.db", "system_file"),
        ("DESKTOP.INI", "system_file"),
        ("Icon\r", "system_file"),
        ("more.zip", "archive"),
        ("more.tar.gz", "archive"),
        ("photo.jpg", ""),
        ("photo", ""),
        ("photo.cr2", ""),
        ("photo.tmp", ""),
        (".hidden.jpg", ""),
        ("json", ""),
    ],
)
def test_what_is_no_photo_by_its_name_is_skipped_with_a_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    files = {name: b"x", "photo.png": b"photo"}
    for place in (
        _folder(tmp_path / "photos", files),
        _zip(tmp_path / "a.zip", files),
        _tar(tmp_path / "a.tar", files),
    ):
        (ref,) = [ref for ref in open_source(place, every_file=True).refs() if ref.name == name]
        assert ref.skipped == reason


def test_a_place_that_holds_only_what_is_skipped_holds_no_photos(tmp_path: Path) -> None:
    for name in ("notes.txt", "@eaDir/a.jpg"):
        with pytest.raises(UsageError, match="holds no images"):
            list(open_source(_zip(tmp_path / "a.zip", {name: b"x"}), every_file=True).refs())


def test_a_single_file_is_never_skipped_because_the_user_named_it(tmp_path: Path) -> None:
    (ref,) = open_source(_folder(tmp_path, {"._a.jpg": b"x"}) / "._a.jpg", every_file=True).refs()
    assert not ref.skipped


@pytest.mark.parametrize("every_file", [False, True])
def test_a_folder_that_cannot_be_listed_is_one_unreadable_input(
    tmp_path: Path, every_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path / "photos", {"a.png": b"a", "b/1.png": b"b", "b/c/1.png": b"c", "d.png": b"d"})
    scandir, locked = os.scandir, str(tmp_path / "photos" / "b")

    def refuse(path: str) -> object:
        if path == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(tmp_path / "photos", every_file)
    refs = {ref.name: ref for ref in source.refs()}
    assert sorted(refs) == ["a.png", "b/", "d.png"]
    assert source.read(refs["d.png"]) == b"d"
    with pytest.raises(PhotoUnreadableError, match=r"b/ cannot be read \(Permission denied\)"):
        source.read(refs["b/"])
    locked = str(tmp_path / "photos")
    with pytest.raises(UsageError, match=r"photos cannot be listed \(Permission denied\)"):
        list(open_source(tmp_path / "photos", every_file).refs())
    monkeypatch.undo()
    with pytest.raises(PhotoUnreadableError, match="run the command again"):
        source.read(refs["b/"])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.ENOTCONN])
def test_a_place_that_fails_blames_no_photo(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.png": b"a", "b/1.png": b"b"}
    sources = [open_source(_folder(tmp_path / "photos", files)), open_source(_zip(tmp_path / "a.zip", files))]
    sources.append(open_source(_tar(tmp_path / "a.tar", files)))
    refs = [next(source.refs()) for source in sources]

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    for source, ref in zip(sources, refs, strict=True):
        with pytest.raises(storage.PlaceError, match="cannot be read") as caught:
            source.read(ref)
        assert caught.value.exit_code == 3


def test_odd_names_reach_the_listing_as_text_that_can_be_written(tmp_path: Path) -> None:
    names = ["esc\x1b[31m.png", "new\nline.png", "bell\x07.png", "\u202egnp.png"]
    folder = _folder(tmp_path / "photos", dict.fromkeys(names, b"x"))
    raw = os.fsencode(tmp_path / "photos") + b"/caf\xe9/\xff\xfe.png"
    Path(os.fsdecode(raw)).parent.mkdir()
    Path(os.fsdecode(raw)).write_bytes(b"x")
    found = [ref.name for ref in open_source(folder, every_file=True).refs()]
    assert found == sorted([*names, "caf\\xe9/\\xff\\xfe.png"])
    assert all(name.encode("utf-8") for name in found)
