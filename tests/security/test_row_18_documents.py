"""Settings, records and tags from others end in one line, within a second, whatever they hold."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbfr.degradation import DegradationSpec
from diffbfr.documents import MAX_DEPTH, abridged, check_values, decode_json
from diffbfr.errors import DiffBFRError, UsageError
from pipelines import storage
from pipelines.cli.app import main
from pipelines.dataset.sealed_json import read_checksummed_json
from pipelines.recipes.overrides import load
from pipelines.sources import open_source
from pipelines.sources.ffhq_index import index_rows


def laughs(levels: int = 30, each: int = 9) -> str:
    """Maps of aliases: `levels` lines that unfold to each ** levels values."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        parts = ", ".join(f"k{i}: *a{level - 1}" for i in range(each))
        lines.append(f"a{level}: &a{level} {{{parts}}}")
    return "\n".join(lines)


def lists_of_laughs() -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for level in range(1, 30):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


def merges() -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 30):
        lines.append(f"a{level}: &a{level}\n  <<: [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


FILES = {
    "maps of aliases": ("s.yaml", laughs()),
    "wide maps of aliases": ("s.yaml", laughs(4, 400)),
    "lists of aliases": ("s.yaml", lists_of_laughs()),
    "merges of aliases": ("s.yaml", merges()),
    "an alias of itself": ("s.yaml", "a: &a {b: *a}"),
    "deep YAML lists": ("s.yaml", "a: " + "[" * 20_000),
    "deep YAML maps": ("s.yaml", "{a: " * 20_000),
    "deep block maps": ("s.yaml", "".join(f"{' ' * i}a:\n" for i in range(400))),
    "deep block lists": ("s.yaml", "- " * 20_000 + "a"),
    "tags of Python": ("s.yaml", 'a: !!python/object/apply:os.system ["touch owned"]'),
    "a YAML number of 5,000 digits": ("s.yaml", "data: {variants: " + "9" * 5_000 + "}"),
    "a hexadecimal number of 60,000 digits": ("s.yaml", "data: {variants: 0x" + "f" * 60_000 + "}"),
    "a sexagesimal number": ("s.yaml", "data: {variants: 1" + ":59" * 20_000 + "}"),
    "a key of 100,000 characters": ("s.yaml", "? " + "k" * 100_000 + "\n: 1"),
    "a date that is none": ("s.yaml", "data: {variants: 2001-99-99}"),
    "a date": ("s.yaml", "data: {variants: 2001-01-01}"),
    "a set": ("s.yaml", "data: {variants: !!set {1, 2}}"),
    "a list for settings": ("s.yaml", "[1, 2]"),
    "no text": ("s.yaml", "\x00\x01"),
    "a megabyte of YAML": ("s.yaml", "# " + "x" * (1 << 20)),
    "deep JSON": ("s.json", '{"a":' * 20_000),
    "closed deep JSON": ("s.json", "[" * 900 + "]" * 900),
    "a JSON number of 5,000 digits": ("s.json", '{"data.variants": ' + "9" * 5_000 + "}"),
    "a JSON number of 4,000 digits": ("s.json", '{"data.variants": ' + "9" * 4_000 + "}"),
    "JSON with infinity": ("s.json", '{"irm1.training.learning_rate": Infinity}'),
    "JSON with NaN": ("s.json", '{"data.degradation.sigma": [NaN, NaN]}'),
    "deep TOML": ("s.toml", "a = " + "[" * 20_000),
    "a dotted key of TOML": ("s.toml", ".".join(["a"] * 20_000) + " = 1"),
    "a dotted key in a TOML table": ("s.toml", "a = {" + ".".join(['"a b"'] * 20_000) + " = 1}"),
    "a TOML number of 5,000 digits": ("s.toml", "a = " + "9" * 5_000),
}
FIELDS = (
    "data.degradation.kernel_px=100000001",
    "data.degradation.sigma=0,100000000",
    "data.degradation.r=0.0000001,1",
    "data.degradation.max_working_px=1000000000",
    "data.degradation.hq_px=100000000000",
    "data.hq_px=1000000",
    "data.lq_px=0",
    "data.variants=1000000000",
    "data.shard_size=1000000000000",
    "data.faces=synthetic:count=" + "9" * 5_000,
    "irm1.stage.unet.inner_channels=8192",
    "irm1.stage.unet.res_blocks=1000000,1,1",
    "irm1.stage.schedule.num_steps=1000000000",
    "irm1.training.learning_rate=nan",
    "evaluate.batch=1000000000",
    "evaluate.num_panels=-1",
    "restore.unit_size=0",
    "restore.num_photos=" + "9" * 5_000,
    "x" * 100_000 + "=1",
    "data.variants=" + "x" * 100_000,
    "data.degradation.preset=" + "x" * 100_000,
)
PIPELINES = (
    [{"MotionBlur": {"blur_limit": 10**8 + 1, "p": 1.0}}],
    [{"GaussianBlur": {"blur_limit": [3, 10**8 + 1]}}],
    [{"GaussianBlur": {"sigma_limit": 1e30}}],
    [{"GlassBlur": {"iterations": 10**9}}],
    [{"GaussNoise": {"std_range": [float("inf"), float("inf")]}}],
    [{"OneOf": {"transforms": [{"Defocus": {"radius": [1, 10**7]}}]}}],
    [{"Posterize": {"num_bits": 10**18}}],
)


def exit_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """Exit code and standard error of a command, which must have ended within a few seconds of work."""
    monkeypatch.setattr("sys.argv", ["diffbfr", *arguments])
    started = time.process_time()
    with pytest.raises(SystemExit) as ended:
        main()
    assert time.process_time() - started < 10
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(("name", "text"), FILES.values(), ids=FILES.keys())
def test_a_file_of_settings_is_exit_2_and_one_line(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_text(text)
    root = str(tmp_path / "root")
    code, told = exit_of(monkeypatch, capsys, "run", "--plan", "--root", root, "--config", str(file))
    assert code == 2, told
    assert told.count("\n") == 1
    assert len(told) < 600 + len(str(tmp_path))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("field", FIELDS, ids=[field[:40] for field in FIELDS])
def test_a_setting_out_of_range_is_exit_2_and_one_line(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "root")
    code, told = exit_of(monkeypatch, capsys, "run", "--plan", "--root", root, "--set", field)
    assert code == 2, told
    assert told.count("\n") == 1
    assert len(told) < 600


@pytest.mark.parametrize("pipeline", PIPELINES, ids=[str(pipeline)[2:40] for pipeline in PIPELINES])
def test_a_blur_of_10_to_the_8_px_is_refused_before_a_photo_is_read(pipeline: object, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    file.write_text(json.dumps(pipeline))
    with pytest.raises(UsageError) as refused:
        load("smoke", None, (f"data.degradation.before={file}",))
    assert len(str(refused.value)) < 600 + len(str(tmp_path))


@pytest.mark.slow  # imports albumentations
def test_pipelines_of_the_usual_size_pass(tmp_path: Path) -> None:
    file = tmp_path / "before.yaml"
    file.write_text("[{MotionBlur: {blur_limit: 41, p: 0.3}}, {GaussNoise: {std_range: [0.1, 0.2]}}]")
    assert "MotionBlur" in load("smoke", None, (f"data.degradation.before={file}",)).data.degradation.before


def test_aliases_of_a_reasonable_size_pass(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("irm1: {training: &t {num_samples: 8}}\ntem: {training: *t}")
    assert load("smoke", str(file)).tem.training.num_samples == 8


DEEP = '{"a":' * 2_000 + "1" + "}" * 2_000
RECORDS = ("[" * 50_000, DEEP, '{"a": ' + "9" * 5_000 + "}", '{"a": ' + "9" * 4_000 + "}", "", "\x00", "nul")


@pytest.mark.parametrize("text", RECORDS, ids=[text[:8] for text in RECORDS])
@pytest.mark.parametrize("read", [storage.read_json, read_checksummed_json])
def test_a_record_of_nonsense_is_an_error_of_the_user(
    read: Callable[[str], Any], text: str, tmp_path: Path
) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DiffBFRError) as refused:
        read(str(tmp_path / "record.json"))
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("text", RECORDS[:5], ids=[text[:8] for text in RECORDS[:5]])
def test_tags_of_a_registry_that_are_nonsense_are_one_line(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.registry import audit_log, evaluations, holdout

    monkeypatch.setattr(holdout, "model_tags", lambda registry, name: {holdout.TAG: text or "["})
    with pytest.raises(UsageError):
        holdout.read_holdout(None)  # type: ignore[arg-type]
    version = SimpleNamespace(ref="diffbfr-cascade@1", tags={"scores.p": text or "["})
    with pytest.raises(UsageError):
        evaluations.recorded_metrics(version, "p")  # type: ignore[arg-type]
    run = SimpleNamespace(data=SimpleNamespace(tags={audit_log._ENTRY: text or "["}), info=SimpleNamespace())
    with pytest.raises(UsageError):
        audit_log._entry(run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tag", ["null", "[]", "{}", '{"protocol": 1}', '{"dataset": 1, "protocol": {}, "metrics": 3}']
)
def test_a_hold_out_of_other_fields_is_one_line(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.registry import holdout

    monkeypatch.setattr(holdout, "model_tags", lambda registry, name: {holdout.TAG: tag})
    with pytest.raises(UsageError):
        holdout.read_holdout(None)  # type: ignore[arg-type]


def test_an_index_of_nonsense_is_a_value_error() -> None:
    import io

    for text in ("[" * 10_000, '{"a":' * 10_000, '{"a": ' + "9" * 10_000 + "}"):
        with pytest.raises(ValueError, match=r"it "):
            list(index_rows(io.BytesIO(text.encode())))


def test_limits_are_what_the_errors_say() -> None:
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert decode_json(json.dumps(deep)) == deep
    with pytest.raises(ValueError, match="nested more than 64"):
        decode_json(json.dumps([deep]))
    assert decode_json(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(ValueError, match="more than 19 digits"):
        decode_json(str(2**63))
    with pytest.raises(ValueError, match="unfolds to more than"):
        check_values([list(range(1000))] * 1000)
    assert abridged("x" * 1000) == repr("x" * 1000)[:80] + "..."


def test_a_synthetic_source_of_many_digits_is_one_line() -> None:
    with pytest.raises(UsageError, match="expected a whole number"):
        open_source("synthetic:count=" + "9" * 5_000)


def test_the_largest_blur_is_that_of_the_largest_face() -> None:
    assert DegradationSpec().at(4096).kernel_px == 321
