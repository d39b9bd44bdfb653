"""The completion of `stce` in real shells."""

import os
import pty
import select
import shutil
import subprocess
import time

import pytest
from helpers import modules_after, run_cli

from stce_jax.cli import VERBS, make_parser
from stce_jax.verbs import completion
from stce_jax.workdir.config import SHIPPED

CONFIGS = {path.stem for path in SHIPPED.glob("[!_]*.py")}
PATHS = ["mine.py", "notes.txt", "runs", "two words"]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script for bash, as the command prints it."""
    path = tmp_path_factory.mktemp("completion") / "stce"
    path.write_text(completion.completion(make_parser(), "bash"))
    return path


@pytest.fixture
def offered(script, tmp_path, monkeypatch):
    """What bash offers at the end of a line, in a directory with the `PATHS`, of which the last two are directories."""
    for name in PATHS[:2]:
        (tmp_path / name).touch()
    for name in PATHS[2:]:
        (tmp_path / name).mkdir()
    (tmp_path / "runs" / "digits").mkdir()
    monkeypatch.chdir(tmp_path)

    def offer(line, equals_splits=True):
        words = line.split(" ")
        if equals_splits:  # as bash does
            words = [part for word in words for part in word.replace("=", " = ").rstrip(" ").split(" ")]
        program = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _stce; printf "%s\\n" "${COMPREPLY[@]}"'
        command = ["bash", "--norc", "-c", program, script, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == "", done.stderr
        return sorted(filter(None, done.stdout.splitlines()))

    return offer


def test_verbs(offered):
    assert offered("stce ") == sorted(VERBS)
    assert offered("stce ev") == ["evaluate"]
    assert offered("stce xyz") == []


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_those_of_the_help(capsys, offered, verb):
    code, out, _ = run_cli(capsys, verb, "--help")
    assert code == 0
    found = offered(f"stce {verb} --")
    assert {"--help", "--debug"} <= set(found) and all(option in out for option in found)
    (verbs,) = (action for action in make_parser()._actions if action.dest == "verb")
    options = verbs.choices[verb]._option_string_actions
    assert found == sorted(option for option in options if option.startswith("--")), "one is missing"


def test_options_after_others(offered):
    assert offered("stce evaluate --workdir=runs --ema --chec") == ["--checkpoint"]
    assert offered("stce evaluate --workdir runs --ema --chec") == ["--checkpoint"]
    assert offered("stce train --config=digits --config.seed=1 --workd") == ["--workdir"]


@pytest.mark.parametrize("between", [" ", "="])
@pytest.mark.parametrize(
    "start, expected",
    [
        ("stce evaluate --split{}", ["holdout", "train", "val"]),
        ("stce evaluate --split{}v", ["val"]),
        ("stce features --kind{}", ["pooled", "tokens"]),
        ("stce evaluate --checkpoint{}", ["best", "last"]),
        ("stce prepare folder --on_bad{}s", ["skip"]),
        ("stce reproduce all --scale{}sm", ["small", "smoke"]),
        ("stce reproduce all --submit{}", ["local", "slurm"]),
        ("stce reproduce all --cell{}", []),
        ("stce evaluate --workdir{}", ["runs", "two words"]),
        ("stce evaluate --workdir{}runs/", ["runs/digits"]),
        ("stce train --config{}digits --data_dir{}r", ["runs"]),
        ("stce train --config{}digits --init_from{}", PATHS),
        ("stce predict --csv{}n", ["notes.txt"]),
        ("stce train --config{}st", ["stce_vit_s"]),
        ("stce show-data --config{}", [*CONFIGS, "mine.py", "runs", "two words"]),
        ("stce models --image_size{}", []),
        ("stce train --config.seed{}", []),
    ],
)
def test_values(offered, start, between, expected):
    line = start.replace("{}", between)
    assert offered(line) == sorted(expected)
    if between == "=":  # where bash was told that "=" ends no word, the whole word is to be offered
        option = line.split(" ")[-1].partition("=")[0]
        assert offered(line, equals_splits=False) == sorted(f"{option}={value}" for value in expected)


@pytest.mark.parametrize(
    "line, expected",
    [
        ("stce compare ", ["runs", "two words"]),
        ("stce compare runs runs/", ["runs/digits"]),
        ("stce compare --output=a.png ru", ["runs"]),
        ("stce predict --workdir=runs n", ["notes.txt"]),
        (
            "stce reproduce ",
            [
                *("all", "bodies", "clustering", "readings", "recipe", "recipe_test", "reductions"),
                *("table1", "table6", "table7", "table8"),
            ],
        ),
        ("stce completion z", ["zsh"]),
        ("stce models ", []),
    ],
)
def test_arguments_without_a_name(offered, line, expected):
    assert offered(line) == expected


# --- in real shells


class Shell:
    """An interactive shell at a terminal, in which `stce` prints its words."""

    def __init__(self, *argv, setup, cwd):
        self.terminal, inner = pty.openpty()
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), inner)
        self.process = subprocess.Popen(
            argv, cwd=cwd, env=os.environ | {"TERM": "dumb"}, start_new_session=True, **ends
        )
        os.close(inner)
        self.type("stce() { printf '[%s]' \"$@\"; echo; }; " + setup + "; PS1='REA''DY>'\n")

    def type(self, keys):
        """What the terminal shows from here to the next prompt."""
        os.write(self.terminal, keys.encode())
        shown, end = b"", time.monotonic() + 20
        while not shown.rstrip().endswith((b"READY>", b"READY>\x1b[?2004h")):
            assert time.monotonic() < end, f"no prompt after {keys!r}: {shown!r}"
            if select.select([self.terminal], [], [], 0.1)[0]:
                shown += os.read(self.terminal, 65536)
        return shown.decode()

    def close(self):
        os.close(self.terminal)  # which ends the shell
        self.process.wait(20)


LINES = {
    "stce tra\t\n": "[train]",
    "stce train --config=dig\t\n": "[train][--config=digits]",
    "stce train --config dig\t\n": "[train][--config][digits]",
    "stce train --config=mi\t\n": "[train][--config=mine.py]",
    "stce evaluate --split=v\t\n": "[evaluate][--split=val]",
    "stce evaluate --workdir=run\tdig\t\n": "[evaluate][--workdir=runs/digits",
}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_tabulator_key(script, offered, tmp_path, shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    if shell == "bash":
        session = Shell("bash", "--norc", "-i", setup=f"source {script}", cwd=tmp_path)
    else:
        directory = script.parent / "functions"
        directory.mkdir()
        (directory / "_stce").write_text(completion.completion(make_parser(), "zsh"))
        subprocess.run(["zsh", "-n", directory / "_stce"], check=True)
        setup = f"fpath=({directory} $fpath); autoload -U compinit; compinit -u -D"
        session = Shell("zsh", "-f", "-i", setup=setup, cwd=tmp_path)
    try:
        for keys, expected in LINES.items():
            assert expected in session.type(keys), f"after {keys!r}"
    finally:
        session.close()


def test_printing_it_starts_no_jax():
    loaded = modules_after(
        "from stce_jax.cli import main\ntry:\n    main(['completion', 'bash'])\nexcept SystemExit: pass"
    )
    assert "shtab" in loaded and not {"jax", "flax", "numpy"} & loaded
