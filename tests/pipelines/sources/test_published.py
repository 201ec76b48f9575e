"""FFHQ is checked against its publisher's index, wherever both lie; a damaged index is told and never half
believed.
"""

import hashlib
import io
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.errors import UsageError
from diffbfr.images import encode_png
from diffbfr.synthetic import render_face
from pipelines import storage
from pipelines.sources import PhotoUnreadableError, open_source, published
from pipelines.sources.ffhq_index import index_rows

INDEX = "ffhq-dataset-v2.json"


def _ffhq(root: Path, count: int = 3) -> tuple[Path, dict[str, np.ndarray]]:
    """FFHQ as its download leaves it: pictures, thumbnails, and the index beside them."""
    pictures = {f"{number:05d}": render_face(number, 32).pixels for number in range(count)}
    index = {}
    for key, pixels in pictures.items():
        entry = {"category": "training", "metadata": {"photo_url": "http://x/{y}"}}
        for kind, name, px in (("image", "images1024x1024", 32), ("thumbnail", "thumbnails128x128", 16)):
            small = np.array(Image.fromarray(pixels).resize((px, px)))
            data = encode_png(small)
            place = f"{name}/{int(key) // 1000 * 1000:05d}/{key}.png"
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(data)
            entry[kind] = {
                "file_url": "http://x",
                "file_path": place,
                "file_size": len(data),
                "file_md5": hashlib.md5(data).hexdigest(),
                "pixel_size": [px, px],
                "pixel_md5": hashlib.md5(small.tobytes()).hexdigest(),
            }
        index[str(int(key))] = entry
    (root / "ffhq-dataset-v2.json").write_text(json.dumps(index))
    return root, pictures


@pytest.mark.parametrize("layout", ["images1024x1024", "thumbnails128x128", "."])
def test_ffhq_is_read_by_its_layouts_and_checked_against_its_index(tmp_path: Path, layout: str) -> None:
    root, pictures = _ffhq(tmp_path / "ffhq")
    source = open_source(root / layout)
    refs = list(source.refs())
    assert len(refs) == 2 * len(pictures) if layout == "." else len(pictures)
    assert all(ref.file_md5 and ref.pixel_md5 for ref in refs)
    for ref in refs:
        source.read(ref)
    before = source.digest()
    (root / "ffhq-dataset-v2.json").unlink()
    assert not any(ref.file_md5 for ref in open_source(root / layout).refs())
    assert open_source(root / layout).digest() != before


def test_a_photo_that_is_not_the_published_one_is_unreadable_but_its_pixels_may_come_in_another_file(
    tmp_path: Path,
) -> None:
    root, pictures = _ffhq(tmp_path / "ffhq")
    folder = root / "images1024x1024" / "00000"
    other = io.BytesIO()
    Image.fromarray(pictures["00000"]).save(other, "PNG", compress_level=1, optimize=False)
    (folder / "00000.png").write_bytes(other.getvalue())
    damaged = pictures["00001"].copy()
    damaged[3, 4, 0] ^= 1
    (folder / "00001.png").write_bytes(encode_png(damaged))
    (folder / "00002.png").write_bytes((folder / "00002.png").read_bytes()[:-40])
    source = open_source(root / "images1024x1024")
    first, second, third = source.refs()
    assert source.read(first) == other.getvalue()
    with pytest.raises(
        PhotoUnreadableError,
        match=r"00001\.png is not the published photo \(its pixels are others\); expected MD5",
    ):
        source.read(second)
    with pytest.raises(
        PhotoUnreadableError, match=r"00002\.png is not the published photo \(the PNG file ends early"
    ):
        source.read(third)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "cut entry", "two", "list", "nothing", "text", "digest", "comma"]
)
def test_a_damaged_index_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    root, _ = _ffhq(tmp_path / "ffhq")
    whole = (root / INDEX).read_text()
    (root / INDEX).write_text(
        {
            "empty": "",
            "cut": whole[: len(whole) // 2],
            "cut entry": whole[: whole.index('}}, "1"') + 2],
            "two": whole * 2,
            "list": f"[{whole}]",
            "nothing": "{}",
            "text": "<html>404</html>",
            "digest": whole.replace('"file_md5": "', '"file_md5": "x', 1),
            "comma": whole[:-1] + ",}",
        }[damage]
    )
    with pytest.raises(
        UsageError, match=r"ffhq-dataset-v2\.json is no whole index of FFHQ .*download it again"
    ) as caught:
        list(open_source(root / "images1024x1024").refs())
    assert "\n" not in str(caught.value)


def test_every_cut_of_an_index_is_noticed(tmp_path: Path) -> None:
    root, _ = _ffhq(tmp_path / "ffhq", 2)
    whole = (root / INDEX).read_bytes()
    for size in range(0, len(whole), 41):
        (root / INDEX).write_bytes(whole[:size])
        with pytest.raises(UsageError, match="is no whole index"):
            list(open_source(root).refs())


def test_where_only_the_pixels_have_a_checksum_they_are_checked(tmp_path: Path) -> None:
    root, pictures = _ffhq(tmp_path / "ffhq")
    index = json.loads((root / INDEX).read_text())
    for entry in index.values():
        del entry["image"]["file_md5"]
    (root / INDEX).write_text(json.dumps(index))
    pictures["00001"][3, 4, 0] ^= 1
    (root / "images1024x1024" / "00000" / "00001.png").write_bytes(encode_png(pictures["00001"]))
    source = open_source(root / "images1024x1024")
    first, second, third = source.refs()
    assert [ref.file_md5 for ref in (first, second, third)] == [""] * 3
    assert source.read(first)
    assert source.read(third)
    with pytest.raises(
        PhotoUnreadableError,
        match=r"00001\.png is not the published photo \(its pixels are others\); expected pixels of MD5",
    ):
        source.read(second)
    before = source.digest()
    (root / INDEX).unlink()
    assert open_source(root / "images1024x1024").digest() != before


@pytest.mark.parametrize("place", ["in", "in, below a folder", "beside"])
@pytest.mark.parametrize("kind", ["s3", "zip", "tar"])
def test_ffhq_is_checked_against_its_index_wherever_both_lie(
    tmp_path: Path, kind: str, place: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = _ffhq(tmp_path / "ffhq", 2)
    (root / "images1024x1024" / "00000" / "00001.png").write_bytes(
        encode_png(np.zeros((32, 32, 3), np.uint8))
    )
    shutil.rmtree(root / "thumbnails128x128")
    (tmp_path / "pack").mkdir()
    if place == "beside":
        shutil.move(root / INDEX, tmp_path / "pack" / INDEX)
        packed, name = root / "images1024x1024", "images1024x1024"
    else:
        packed, name = (root if place == "in" else tmp_path), "ffhq"
    if kind == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        storage.put_tree(root if place != "beside" else packed, f"{bucket}/{tmp_path.name}/{name}")
        if place == "beside":
            storage.write_atomic(
                f"{bucket}/{tmp_path.name}/{INDEX}", (tmp_path / "pack" / INDEX).read_bytes()
            )
        uri = f"{bucket}/{tmp_path.name}/{name}"
    else:
        inner = "ffhq" if place == "in, below a folder" else None
        uri = shutil.make_archive(str(tmp_path / "pack" / name), kind, packed, inner)
    source = open_source(uri)
    first, second = (ref for ref in source.refs() if "images1024" in f"{source.uri}{ref.name}")
    assert source.read(first)
    with pytest.raises(PhotoUnreadableError, match=r"00001\.png is not the published photo"):
        source.read(second)
    assert not [record for record in caplog.records if record.name == published.__name__]


def test_photos_that_only_the_folder_or_only_the_index_has_are_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = _ffhq(tmp_path / "ffhq", 5)
    for number in (1, 4):
        (root / "images1024x1024" / "00000" / f"0000{number}.png").unlink()
    (root / "images1024x1024" / "mine.png").write_bytes(b"mine")
    source = open_source(root / "images1024x1024")
    refs = list(source.refs())
    assert [bool(ref.file_md5) for ref in refs] == [True, True, True, False]
    assert source.read(refs[3]) == b"mine"
    assert source.digest()
    assert caplog.messages == [
        f"{root / INDEX}: 3 of the photos that it names are here, 2 are not; 1 that are here are not in it "
        "and go unchecked"
    ]


class _InPieces(io.BytesIO):
    """A file whose reads are short."""

    def __init__(self, data: bytes, num_bytes: int) -> None:
        super().__init__(data)
        self._num_bytes = num_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, self._num_bytes))


def test_an_index_in_small_pieces_has_the_rows_that_json_reads() -> None:
    md5 = "0123456789abcdef" * 2
    whole = {
        "a": {
            "é{": [1, 2.5, {"b": "}\\"}],
            "image": {"file_path": "é/{.png", "file_md5": md5, "pixel_md5": ""},
        },
        "": {"file_path": "b.png", "face": [[1.5, 2]], "pixel_md5": md5},
        "n": 12345,
        "m": None,
        "o": {},
    }
    for indent in (None, 1):
        data = json.dumps(whole, indent=indent, ensure_ascii=False).encode()
        for num_bytes in (1, 3, 64):
            rows = list(index_rows(_InPieces(data, num_bytes)))
            assert rows == [("é/{.png", md5, ""), ("b.png", "", md5)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[{}]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b'{"a": {"file_path": ["x"]}}', "no MD5s"),
        (b'{"a": {"file_path": {"file_path": "x"}}}', "no MD5s"),
        (b'{"a": {"file_path": "x", "file_md5": 7}}', "no MD5s"),
        (b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}", "more than 32 levels"),
        (b'{"a": ' + b'{"a": ' * 1000, "more than 32 levels"),
        (b'{"a": ' + b"9" * 200_000 + b"}", "more than 1000 digits"),
        (b'{"a": "' + b"a" * (5 << 20) + b'"}', "bytes without a value"),
        (b'{"a": 1}' + b" " * (5 << 20), "bytes without a value"),
        (b'{"a": 1}\0', "trailing garbage"),
        (b'{"a": "\xff"}', "invalid bytes in UTF8"),
        (b'{"a": NaN}', "invalid char"),
    ],
)
def test_an_index_that_is_damaged_or_a_trap_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(index_rows(io.BytesIO(data)))


def test_reading_an_index_takes_the_same_memory_however_long_it_is() -> None:
    entry = {"file_path": "a.png", "face_landmarks": [[number + 0.25, 1.5] for number in range(68)]}
    peaks = []
    for count in (200, 2000):
        file = io.BytesIO(json.dumps({str(number): entry for number in range(count)}).encode())
        tracemalloc.start()
        assert sum(1 for _ in index_rows(file)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
