"""Commands that make a directory, killed before one of their writes after the other; see `kill_program`."""

import json
import subprocess
import sys
from pathlib import Path

from weight_sources import TIMM, noise, write_folder

from stce_jax.paths import open_path
from stce_jax.verbs.appearing import PREFIX
from stce_jax.workdir.digests import find_damage


def killed(root, formats, stride=3):
    """{command: {"left", "code"} of `kill_program`} of `stce import`, and of `stce export` of what that made.

    Args:
      root: an empty folder; each command makes ROOT/COMMAND/made.
      formats: {format: options}.
      stride: every how many writes an export is killed.
    """
    source = write_folder(root / "hub", noise()[0], TIMM)
    run = root / "import" / "made"
    commands = {"import": ("import", str(source), f"--workdir={run}")}
    for name, options in formats.items():
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
        given.append({"folder": f"{root / name}/", "words": words, "stride": 4 if name == "import" else stride})
    program = Path(__file__).parent / "kill_program.py"
    ended = subprocess.run([sys.executable, program, json.dumps(given)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return dict(zip(commands, map(json.loads, ended.stdout.splitlines()), strict=True))


def check(root, command, found):
    """What was left after each kill looks like nothing whole, and the last start made the whole; returns its place."""
    *killed, last = found["left"]
    assert len(killed) >= 3, "it was killed too seldom"
    for left in killed:
        assert len(left) <= 1, "what an earlier one left was not removed"
        assert all(name.startswith(PREFIX) for name in left), "half of it has the name of the whole"
    assert any(killed) and (found["code"], last) == (0, ["made"]), "the last one did not end well"
    made = root / command / "made"
    assert command == "import" or find_damage(open_path(made)) is None
    return made
