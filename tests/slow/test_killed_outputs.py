"""`stce import` and `stce export`, killed before one of their writes after the other, and started again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from weight_sources import TIMM, noise, write_folder

import stce_jax
from stce_jax.convert.sources import open_source
from stce_jax.paths import open_path
from stce_jax.verbs.appearing import PREFIX
from stce_jax.workdir.digests import find_damage

FORMATS = {"jax": ("--platforms=cpu", "--batch=1"), "safetensors": (), "timm": (), "torch": (), "huggingface": ()}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, {command: {"left", "code"} of `kill_program`}); what each made is FOLDER/COMMAND/made."""
    root = tmp_path_factory.mktemp("killed")
    source = write_folder(root / "hub", noise()[0], TIMM)
    run = root / "import" / "made"
    commands = {"import": ("import", str(source), f"--workdir={run}")}
    for name, options in FORMATS.items():
        commands[name] = (
            "export",
            f"--workdir={run}",
            f"--output={root / name / 'made'}",
            f"--format={name}",
            *options,
        )
    given = []
    for name, words in commands.items():
        (root / name).mkdir()
        given.append({"folder": f"{root / name}/", "words": words, "stride": 4 if name == "import" else 3})
    program = Path(__file__).parents[1] / "kill_program.py"
    ended = subprocess.run([sys.executable, program, json.dumps(given)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return root, dict(zip(commands, map(json.loads, ended.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", ["import", *FORMATS])
def test_a_killed_command_leaves_nothing_that_looks_whole_and_runs_again(done, command):
    folder, found = done[0], done[1][command]
    *killed, last = found["left"]
    assert len(killed) >= 3, "it was killed too seldom"
    for left in killed:
        assert len(left) <= 1, "what an earlier one left was not removed"
        assert all(name.startswith(PREFIX) for name in left), "half of it has the name of the whole"
    assert any(killed) and (found["code"], last) == (0, ["made"]), "the last one did not end well"
    made = folder / command / "made"
    if command == "import":
        assert stce_jax.load_run(made).step == 0
        return
    assert find_damage(open_path(made)) is None
    if command == "torch":
        compile((made / "model.py").read_text(), "model.py", "exec")
    elif command != "jax":
        assert open_source(made).classes == 5
