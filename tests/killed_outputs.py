"""Commands that make a directory, killed before one of their writes after the other; see `kill_program`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from weight_sources import TIMM, noise, write_folder

from stce_jax.paths import open_path
from stce_jax.verbs.appearing import PREFIX
from stce_jax.workdir.digests import find_damage

# Every how many writes they are killed; the last one of an export gives it its name.
STRIDE = {"import": 6, "safetensors": 2}
OPTIONS = {"jax": ("--platforms=cpu", "--batch=1")}


def killed(root, formats):
    """{command: {"left", "code"} of `kill_program`} of `stce import`, and of `stce export` of what that made.

    `root` is an empty folder; each command makes ROOT/COMMAND/made.
    """
    source = write_folder(root / "hub", noise()[0], TIMM)
    run = root / "import" / "made"
    commands = {"import": ("import", str(source), f"--workdir={run}")}
    for name in formats:
        words = (f"--workdir={run}", f"--output={root / name / 'made'}", f"--format={name}", *OPTIONS.get(name, ()))
        commands[name] = ("export", *words)
    given = []
    for name, words in commands.items():
        (root / name).mkdir()
        given.append({"folder": f"{root / name}/", "words": words, "stride": STRIDE.get(name, 4)})
    program = Path(__file__).parent / "kill_program.py"
    command = [sys.executable, program, json.dumps(given)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert ended.returncode == 0, ended.stderr
    return dict(zip(commands, map(json.loads, ended.stdout.splitlines()), strict=True))


def check(root, command, found):
    """What was left after each kill looks like nothing whole, and the last start made the whole; returns its place."""
    *killed, last = found["left"]
    assert len(killed) >= 2, "it was killed too seldom"
    for left in killed:
        assert len(left) == 1, "what an earlier one left was not removed"
        assert left[0].startswith(PREFIX), "half of it has the name of the whole"
    assert (found["code"], last) == (0, ["made"]), "the last one did not end well"
    made = root / command / "made"
    assert command == "import" or find_damage(open_path(made)) is None
    return made
