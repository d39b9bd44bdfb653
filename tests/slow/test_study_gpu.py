"""launch/study_gpu.sh, and recipe_gpu.sh, with a stand-in for Python: what they ask for, in which order and time."""

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "study_gpu.sh"
# Prints what it is asked for into a log; knows the cells of two seeds; "trains" by a file; "collects" what is trained.
PYTHON = """#!/usr/bin/env bash
words="$*"
echo "$words" >> "$LOG.words"
case "$words" in
  *zipfile*) mkdir -p "${@: -1}" ;;
  *--list*) printf '%s\\n' patch_seed0 stce_seed0 patch_seed1 stce_seed1 ;;
  *--cell=*) echo "${words##*--cell=}" >> "$LOG"; sleep "${SLEEP:-0}"; exit "${STATUS:-0}" ;;
  *study.py*) kept="$(echo "$words" | sed 's/.*--results //; s/ .*//')/medium_128"
    sed 's#.*#touch "'"$kept"'/&.json"#' "$LOG" | bash ;;
  *) echo "unexpected: $words" >&2; exit 9 ;;
esac
"""


@pytest.fixture
def start(tmp_path):
    """Runs the script with stand-ins; returns (it completed, the cells that it asked for)."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "bag").mkdir()
    with zipfile.ZipFile(tmp_path / "bag" / "images.zip", "w") as archive:
        archive.writestr("train/a/0.jpg", b"")

    def run(*words, script=SCRIPT, **variables):
        log = tmp_path / "log"
        log.write_text("")
        own = {"PYTHON": str(python), "WORK": str(tmp_path / "work"), "LOG": str(log), "PARALLEL": "1"}
        done = subprocess.run(
            ["bash", str(script), *words],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=os.environ | own | variables,
        )
        return done, log.read_text().split()

    return run


def kept(tmp_path):
    with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
        return sorted(Path(name).name for name in archive.getnames() if name.endswith(".json"))


def test_all_cells_are_trained_seed_by_seed_and_brought_back(tmp_path, start):
    done, cells = start("run", "bag", "out")
    assert done.returncode == 0, done.stderr
    assert cells == ["patch_seed0", "stce_seed0", "patch_seed1", "stce_seed1"]
    assert kept(tmp_path) == sorted(f"{name}.json" for name in cells)
    assert "4 of 4 runs to do" in done.stderr and "4 runs are kept" in done.stderr


def test_the_recipe_is_the_same_with_another_table(tmp_path, start):
    done, cells = start("run", "bag", "out", script=SCRIPT.with_name("recipe_gpu.sh"))
    assert done.returncode == 0 and len(cells) == 4, done.stderr
    words = (tmp_path / "log.words").read_text()
    rows = "--seeds=0,1,2 --runs=modern_20,modern_80"
    assert f"stce_jax reproduce recipe_test --scale=medium_128 {rows}" in words
    assert "study.py --table=recipe_test --collect" in words and "clustering" not in words


def test_what_is_kept_is_not_trained_again_and_what_fails_stops_nothing(tmp_path, start):
    folder = tmp_path / "bag" / "results" / "medium_128"
    folder.mkdir(parents=True)
    (folder / "stce_seed0.json").write_text("{}")
    done, cells = start("run", "bag", "out", STATUS="5")
    assert done.returncode == 0, done.stderr
    assert cells == ["patch_seed0", "patch_seed1", "stce_seed1"]
    assert "3 of 4 runs to do" in done.stderr and "patch_seed0: exit code 5" in done.stderr


def test_no_run_is_begun_when_the_time_is_used_and_results_are_brought_back(tmp_path, start):
    done, cells = start("run", "bag", "out", LIMIT="8", RESERVE="2", SLEEP="30")
    assert done.returncode == 0, done.stderr
    assert cells == ["patch_seed0"] and kept(tmp_path) == ["patch_seed0.json"]
    assert "patch_seed0: exit code 124" in done.stderr or "patch_seed0: exit code 143" in done.stderr


def test_other_words_get_the_usage(start):
    for words in ((), ("run", "bag"), ("cell", "x", "y")):
        done, cells = start(*words)
        assert done.returncode == 2 and not cells and "study_gpu.sh run BAG OUT" in done.stderr


def test_a_bag_that_is_too_large_is_refused(tmp_path, start):
    with open(tmp_path / "bag" / "large", "wb") as file:
        file.truncate(61_000_000)
    done, _ = start("pack", "bag", "images", WHEELS="")
    assert done.returncode == 2 and "that is more than 60000000" in done.stderr
