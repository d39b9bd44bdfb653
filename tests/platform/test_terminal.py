"""Text of anybody's reaches the terminal through one door, which escapes what could steer it and bounds its length."""

import ast
import io
import sys
import threading
import unicodedata
import warnings
from pathlib import Path

import pytest
from helpers import run_cli
from hypothesis import given
from hypothesis import strategies as st

from stce_jax.commands import common, tables
from stce_jax.errors import DataError
from stce_jax.platform import terminal
from stce_jax.training.progress import TrainProgress

PACKAGE = Path(__file__).parents[2] / "stce_jax"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts)
DOOR = PACKAGE / "platform" / "terminal.py"
# What else may write, and why.
OTHERS = {
    "commands/completion.py": {"sys.stdout.write"},  # a script of our own words
    "training/progress.py": {"self._console.print", "console.print"},  # rich, of numbers, and what is escaped there
}
STEERING = "\x1b]0;title\x07\x1b[2J\r\x08\x7f\x9b31m\u202e\u2066\u200f\u2028\x00\udcff"
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def is_harmless(line):
    return not any(unicodedata.category(character) in UNSEEN for character in line)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_else_prints(path):
    """A call that fails here belongs through `terminal.say`, `warn` or `Data`."""
    if path == DOOR:
        return
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    ends = ("stdout.write", "stderr.write", "stdout.buffer.write", "console.print", "print_exc", "print_exception")
    printing = {call for call in calls if call == "print" or call.endswith(ends)}
    assert printing <= OTHERS.get(path.relative_to(PACKAGE).as_posix(), set()), f"{path}: {printing}"


@given(st.text(st.characters(), max_size=40), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_whatever_is_printed_is_one_harmless_line(text, encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    terminal.say(text, file=file)
    file.seek(0)
    line = file.read()
    assert line.endswith("\n") and is_harmless(line[:-1]), repr(line)
    if text.isascii() and text.isprintable():
        assert line == text + "\n"


def test_what_steers_a_terminal_is_shown_escaped():
    assert terminal.printable("a\x1b[2Jb\u202ec\nd") == r"a\x1b[2Jb\u202ec\nd"
    assert terminal.printable("Zürich 猫 🐈 \\x1b") == "Zürich 猫 🐈 \\x1b"


def test_lines_and_messages_have_a_bounded_length(capsys):
    terminal.warn("cause " + "x" * 10**6 + " remedy")
    terminal.say("x" * 10**6, "short")
    out, error = capsys.readouterr()
    assert error.startswith("stce: cause xxx") and error.endswith("xxx remedy\n") and len(error) < 2100
    assert len(out) < 10_100 and out.endswith("\nshort\n")
    assert all(len(line) <= 2100 for line in tables.aligned([["x" * 10**6, "a"], ["y", "b"]]))
    for length in (10, 11, 12, 100):
        assert len(terminal.shortened("x" * 1000, length)) == length


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError


def test_an_exception_that_cannot_be_printed_is_named():
    assert terminal.one_line(UnprintableError()) == "UnprintableError"


def test_tracebacks_and_warnings_of_python_pass_through_the_door(monkeypatch, capsys):
    for module, name in ((sys, "excepthook"), (threading, "excepthook"), (warnings, "formatwarning")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    terminal.escape_what_python_prints()
    error = DataError(STEERING)
    sys.excepthook(DataError, error, None)

    def fails():
        raise DataError(STEERING)

    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    sys.stderr.write(warnings.formatwarning(STEERING, UserWarning, "file.py", 1, "line"))
    printed = capsys.readouterr().err
    assert all(map(is_harmless, printed.splitlines())), repr(printed)
    assert printed.count("DataError") >= 2 and "UserWarning" in printed


@pytest.mark.parametrize("debug", [(), ("--debug",)])
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--config=digits", "--workdir=W", f"--config.model.name={STEERING}"),
        ("train", "--config=digits", "--workdir=W", f"--config.{STEERING}=1"),
        ("train", "--config=digits", "--workdir=W", f"--{STEERING}"),
        ("train", f"--config={STEERING}", "--workdir=W"),
        ("evaluate", f"--workdir={STEERING}"),
        ("compare", STEERING),
        ("predict", STEERING, "--workdir=W"),
        ("models", STEERING),
        ("models", f"--image_size={STEERING}"),
        ("prepare", STEERING, "--source=W"),
        ("reproduce", STEERING, "--workdir=W"),
        (STEERING,),
    ],
    ids=lambda words: words[0][:9] if len(words[0]) < 10 else "verb",
)
def test_errors_on_names_that_steer_are_harmless(words, debug, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("\x00", "") for word in words]  # which no command line can hold
    code, out, error = run_cli(capsys, *words, *debug)
    assert code in (2, 3) and out == "", error
    assert all(map(is_harmless, error.splitlines())), repr(error)
    assert debug or error.count("\n") == 1, error


def test_results_with_names_that_steer_are_harmless(capsys):
    failures = []
    common.complain(failures)(DataError(f"cannot decode {STEERING}"))
    terminal.say(*tables.aligned([[STEERING, "1"], ["cat", "2"]], right=(1,)))
    with TrainProgress(10, 0) as progress:
        progress.print(STEERING.replace("\udcff", ""))
    out, error = capsys.readouterr()
    assert all(map(is_harmless, [*out.splitlines(), *error.splitlines()])) and len(failures) == 1


def test_data_are_exact_in_a_pipe_and_escaped_on_a_terminal(capsysbinary, monkeypatch):
    data = b'{"name": "caf\\u00e9 \x1b[2J"}\nsecond\n'
    terminal.Data().write(data)
    sys.stdout.flush()
    assert capsysbinary.readouterr().out == data
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    terminal.Data().write(data)
    sys.stdout.flush()
    assert capsysbinary.readouterr().out == data.replace(b"\x1b", b"\\x1b")
