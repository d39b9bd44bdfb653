"""What `stce` keeps of XLA's compilations, and that nothing wrong with it harms a run."""

import os
import platform
import subprocess
import sys

import pytest
from helpers import TINY

from stce_jax.platform import compile_cache

# What `stce` does before a verb, and a verb's smallest: prints its result, and how many programs it found and compiled.
PROGRAM = """
from stce_jax.platform import compile_cache
compile_cache.turn_on()
import collections, jax, jax.monitoring
count = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: count.update([name.rpartition("/")[2]]))
def triple(x): return (3 * x).sum()
print(jax.jit(triple)(jax.numpy.arange(5)), count["cache_hits"], count["cache_misses"])
"""
COLD, WARM = "30 0 2\n", "30 2 0\n"


def environment(cache, **more):
    """A user's, whose cache directory this is: without the variables that these tests are run with."""
    kept = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    kept = {name: value for name, value in kept.items() if "PERSISTENT_CACHE" not in name}
    return kept | {"XDG_CACHE_HOME": str(cache), "JAX_NUM_CPU_DEVICES": "1"} | more


def start(cache, *command, **more):
    command = command or ("-c", PROGRAM)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=environment(cache, **more), **options)


def run(cache, *command, **more):
    """(output, errors) of a process, which must end well."""
    process = start(cache, *command, **more)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output, errors


def entries(cache):
    return {path.name: path for path in (cache / "stce_jax" / "jax").glob("*-cache")}


def test_training_keeps_what_it_compiles_and_another_seed_compiles_nothing(data_dir, tmp_path):
    words = ("-m", "stce_jax", "train", *TINY, "--config.epochs=0.05", f"--data_dir={data_dir}")
    run(tmp_path / "cache", *words, f"--workdir={tmp_path / 'first'}")
    first = entries(tmp_path / "cache")
    assert {"jit_init", "jit_train_step", "jit_eval_step"} <= {name.split("-")[0] for name in first}, sorted(first)
    output, errors = run(tmp_path / "cache", *words, f"--workdir={tmp_path / 'second'}", "--config.seed=1")
    assert "finished: " in output and errors == ""
    assert entries(tmp_path / "cache").keys() == first.keys(), "another seed was compiled for"
    losses = [(tmp_path / name / "metrics.jsonl").read_text().partition("loss")[2][:20] for name in ("first", "second")]
    assert losses[0] != losses[1], f"the seed changes nothing: {losses}"


def test_processes_that_begin_together_share_what_they_compile(tmp_path):
    together = [start(tmp_path) for _ in range(3)]
    for process in together:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output.split()[0], errors) == (0, "30", "")
    assert run(tmp_path) == (WARM, "")


@pytest.mark.parametrize(
    "more", [{"JAX_COMPILATION_CACHE_DIR": "", "x": "1"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}]
)
def test_the_users_own_variables_win(tmp_path, more):
    assert run(tmp_path, **more) == ("30 0 0\n", "")
    assert not entries(tmp_path)


def test_another_directory_of_the_users(tmp_path):
    output, errors = run(tmp_path / "unused", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert output.startswith("30 0 ") and errors == "" and not (tmp_path / "unused").exists()


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null/cache", "relative"])
def test_without_a_directory_to_write_in_nothing_is_kept_and_nothing_said(place):
    assert run(place) == ("30 0 0\n", "")
    assert not os.path.exists(place)


def test_a_user_without_a_home_gets_no_directory_called_tilde(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it does when nobody knows the user
    compile_cache.turn_on()
    assert not list(tmp_path.iterdir()) and "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_full_disk_is_told_of_once_and_what_it_cut_short_is_mended(small_disk):
    (small_disk / "stce_jax" / "jax").mkdir(parents=True)
    (small_disk / "stce_jax" / "jax" / compile_cache.STAMP).touch()
    with open(small_disk / "large", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    output, errors = run(small_disk)
    assert output == "30 0 2\n"
    assert errors.startswith("stce: compiled programs are not kept: OSError: [Errno 28]"), errors
    assert errors.count("\n") == 1, f"said more than once: {errors}"
    (small_disk / "large").unlink()
    assert run(small_disk) == (COLD, ""), "the halves of entries are in the way"
    assert run(small_disk) == (WARM, "")


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_entries_are_compiled_again(tmp_path, damage):
    assert run(tmp_path) == (COLD, "")
    for path in entries(tmp_path).values():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"no program")
    assert run(tmp_path) == (COLD, "")
    assert run(tmp_path) == (WARM, "")


def test_importing_the_package_changes_no_settings():
    program = "import os, stce_jax.verbs.train, stce_jax.verbs.benchmark, stce_jax.cli, jax; "
    program += "print(jax.config.jax_compilation_cache_dir, sorted(n for n in os.environ if 'CACHE_' in n))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment("/proc/none")
    )
    assert done.stdout == "None ['XDG_CACHE_HOME']\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="XLA can be made to see another processor on x86 alone")
def test_a_program_for_other_processors_has_another_name(tmp_path):
    """A home may be shared by machines of several kinds. That XLA's flags are in the name, too, is not what is seen."""
    hashes = set()
    for flags in ("", "--xla_cpu_max_isa=SSE4_2"):
        program = "import jax, logging; logging.basicConfig(); "
        program += "logging.getLogger('jax._src.cache_key').setLevel(logging.DEBUG); jax.numpy.arange(3) + 1"
        _, log = run(tmp_path, "-c", program, JAX_COMPILATION_CACHE_DIR=str(tmp_path), XLA_FLAGS=flags)
        hashes |= {line.split()[-1] for line in log.splitlines() if "hash of serialized accelerator_config" in line}
    assert len(hashes) == 2, f"two kinds of processors, {len(hashes)} names"
