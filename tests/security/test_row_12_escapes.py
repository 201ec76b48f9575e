"""Names chosen by others reach a terminal and a page only as plain text: no escapes, no reordering."""

import ast
import io
import json
import logging
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest

import pipelines.cli.app as cli
from diffbfr.errors import DiffBFRError
from diffbfr.text import format_columns, printable, shown
from pipelines.cli.output import GuardedStream, guard_streams, say, say_block, say_json, table
from pipelines.flows.lineage import Link, format_chain
from pipelines.progress import Progress
from pipelines.report import LineageLink, ReportData, RestoredPhoto
from pipelines.report.page import render

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
ATTACKS = {
    "OSC 52 sets the clipboard": CLIPBOARD,
    "OSC in one byte": "\x9d52;c;AAAA\x9c",
    "CSI clears the screen": "\x1b[2J\x1b[1;1H",
    "CSI in one byte": "\x9b2J",
    "a carriage return overwrites the line": "bad\rgood",
    "a line break forges a line": "a\nledger: all is well",
    "other line breaks": "a\x0b\x0c\x1c\x85\u2028\u2029b",
    "backspace and bell": "a\x08\x07\x00\x7f",
    "right-to-left override": "photo\u202egnp.exe",
    "embeddings": "\u202a\u202b\u202c\u202d",
    "isolates": "\u2066\u2067\u2068\u2069",
    "marks": "\u200e\u200f\u061c",
    "invisible": "a\u200b\u2060\ufeff\xad",
    "tags": "\U000e0041\U000e007f",
    "bytes that are not UTF-8": "caf\udce9",
}
HARMLESS = "Ünïcode 写真 תמונה عکس‌ها 👨‍👩‍👧 a b.png"


def controls(text: str, keep: str = "") -> list[str]:
    """What a terminal would obey or hide, by the categories of Unicode and not by our own list."""
    joiners = "\u200c\u200d"
    return [
        c
        for c in text
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in keep + joiners
    ]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
class TestEveryWayOut:
    def test_one_rule(self, attack: str) -> None:
        assert controls(shown(attack)) == []
        assert shown(attack) != attack

    def test_lines_and_tables(self, attack: str, capsys: pytest.CaptureFixture[str]) -> None:
        say(f"{attack}: 3 problems")
        say_block(table(("name", "n"), [(attack, 1), ("b", 2)]))
        written = capsys.readouterr().out
        assert controls(written, keep="\n") == []
        assert written.count("\n") == 4

    def test_json_stays_json_with_the_name_as_it_is(
        self, attack: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        say_json({attack: [attack]})
        written = capsys.readouterr().out
        assert controls(written, keep="\n") == []
        assert json.loads(written) == {attack: [attack]}

    def test_errors_and_tracebacks(
        self, attack: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail() -> None:
            raise DiffBFRError(f"{attack} is damaged; expected a photo")

        monkeypatch.setattr(cli, "app", fail)
        with pytest.raises(SystemExit):
            cli.main()
        written = capsys.readouterr().err
        assert controls(written, keep="\n") == []
        assert written.count("\n") == 1

    def test_whatever_else_the_process_writes(self, attack: str) -> None:
        stream = io.StringIO()
        guarded = GuardedStream(stream)
        handler = logging.StreamHandler(guarded)
        handler.emit(logging.LogRecord("library", logging.WARNING, "", 1, "cannot read %s", (attack,), None))
        print(attack, file=guarded)
        assert controls(stream.getvalue(), keep="\n\t") == []

    def test_progress(self, attack: str) -> None:
        stream = io.StringIO()
        with Progress(attack, 1, "img", stream=stream) as progress:
            progress.advance(1, file=attack)
        assert controls(stream.getvalue(), keep="\n") == []

    def test_lineage(self, attack: str) -> None:
        link = Link(f"photos {attack}", "d" * 64, attack, (attack,))
        assert controls(format_chain(link), keep="\n") == []
        assert format_chain(link).count("\n") == 1

    def test_page(self, attack: str) -> None:
        page = render(page_of(attack))
        assert controls(page, keep="\n\t") == []


def page_of(name: str) -> ReportData:
    return ReportData(
        recipe=name,
        command=f"diffbfr restore {name}",
        faces=name,
        created="",
        seconds=1.0,
        evaluation=None,
        restored=(RestoredPhoto(name, "quarantined", None, None, name),),
        counts=(("quarantined", 1),),
        lineage=((LineageLink("photos", "1" * 64, name),),),
        notes=(name,),
    )


def test_html_in_a_name_stays_text_and_a_names_direction_stays_in_it() -> None:
    page = render(page_of('"><script>alert(1)</script>\u05d0'))
    assert "<script" not in page
    assert "<bdi>&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\u05d0</bdi>" in page


def test_names_of_all_scripts_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(HARMLESS) == printable(HARMLESS) == HARMLESS
    say(HARMLESS)
    say_json([HARMLESS])
    lines = capsys.readouterr().out
    assert lines == f'{HARMLESS}\n[\n "{HARMLESS}"\n]\n'
    assert format_columns([(HARMLESS,)]) == HARMLESS


def test_a_terminal_of_fewer_characters_gets_escapes_and_no_error() -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    GuardedStream(narrow).write("写.png\n")
    narrow.seek(0)
    assert narrow.read() == "\\u5199.png\n"


def test_guarding_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    guard_streams()
    first = sys.stderr
    guard_streams()
    assert sys.stderr is first
    assert isinstance(first, GuardedStream)


def test_no_command_writes_around_the_rule() -> None:
    """`say` writes lines, so a table goes through `say_block`; and no command prints by itself."""
    for path in (Path(cli.__file__).parent).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called != "print", f"{path}:{node.lineno}"
            assert not called.endswith(".echo") or path.name == "output.py", f"{path}:{node.lineno}"
            if called == "say" and path.name != "output.py":
                written = ast.unparse(node)
                assert not any(part in written for part in ("table(", "\\n")), f"{path}:{node.lineno}"


@pytest.mark.slow
def test_members_of_a_zip_and_files_of_a_folder_reach_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / f"{CLIPBOARD.replace('/', '')}\u202egnp.png").write_bytes(b"no picture")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr(f"a\nledger: fine{CLIPBOARD}.png", b"no picture")
    for source in (folder, tmp_path / "in.zip"):
        output = tmp_path / f"out-{source.name}"
        command = ["restore", str(source), str(output), "--aligned", "--set", "cluster.num_workers=0"]
        done = subprocess.run(
            [sys.executable, "-c", "from pipelines.cli import main; main()", *command],
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 4, done.stderr
        assert controls((done.stdout + done.stderr).decode(), keep="\n") == []
        assert controls((output / "report.html").read_text(), keep="\n") == []
        assert done.stderr.decode().splitlines()[-1].startswith("diffbfr: 1 of 1 inputs are quarantined")


def test_a_progress_bar_draws_on_a_terminal_and_a_label_does_not() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with Progress(f"a{CLIPBOARD}", 1, "img", stream=GuardedStream(terminal)) as progress:
        progress.advance(1, file="b\u202ec")
    drawn = terminal.getvalue()
    assert "\x1b[" in drawn
    assert "\x1b]" not in drawn
    assert "\u202e" not in drawn
    assert "a\\x1b]52" in drawn
