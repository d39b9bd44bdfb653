"""CPU devices, a compilation cache shared with the processes that tests start, and a tiny trained run."""

import contextlib
import fcntl
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Compiled code runs once or twice in a test; LLVM without its optimizations compiles it in a third of the time.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # others may not know the flag, and end at once
    # XLA's older way to compile fused operations takes a quarter of the time; what it computes is the same. In one
    # piece, not in up to 32, small programs compile in two thirds of the time.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

import hypothesis
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiers import (  # noqa: F401
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_protocol,
    pytest_runtest_teardown,
    pytest_sessionfinish,
    pytest_testnodedown,
)

# The first example of a property compiles; no deadline makes sense. Derandomised: every run tries the same examples.
hypothesis.settings.register_profile("stce", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("stce")


# For each override of a config absl asks for the config as text, which YAML takes 12 ms to write, and nobody reads it.
ConfigDict.__str__ = object.__repr__


@pytest.fixture(scope="session")
def test_data():
    """The folder named by STCE_TEST_DATA: golden vectors and real images that are not part of this repository."""
    folder = os.environ.get("STCE_TEST_DATA")
    if not folder:
        pytest.skip("STCE_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A directory that the workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session", autouse=True)
def two_devices():
    """What trains and evaluates has two of the eight devices: programs for more take a quarter longer.

    What is about more of them asks for `eight_devices`, or makes its own mesh.
    """
    from stce_jax.training import mesh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "all_devices", lambda: jax.devices()[:2])
        yield


@pytest.fixture(scope="module")
def eight_devices(two_devices):
    from stce_jax.training import mesh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "all_devices", jax.devices)
        yield


@pytest.fixture(scope="session")
def data_dir(shared):
    """A data directory, shared by all tests, in which the digits are prepared once."""
    (shared / "data").mkdir(exist_ok=True)
    return shared / "data"


@pytest.fixture(scope="session")
def stce():
    """Runs `stce WORDS...` in a process of its own with two devices; returns it completed, output as text."""

    def run(*words, env=None, **options):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"} | (env or {})
        command = [sys.executable, "-m", "stce_jax", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **options)

    return run


@pytest.fixture(scope="session")
def stce_here():
    """Runs `stce WORDS...` in this process; returns it completed, as `stce` does."""

    def run(*words):
        from stce_jax import cli

        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        return subprocess.CompletedProcess(words, end.value.code, output.getvalue(), errors.getvalue())

    return run


@pytest.fixture
def no_picture(monkeypatch):
    """Training in this process draws no curves, which takes as long as a tiny run does."""
    from stce_jax.verbs import train

    monkeypatch.setattr(train, "plot_curves", lambda workdir: workdir)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", directory], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture(scope="module")
def everything_is_split():
    """Splits over `fsdp` arrays of any size; those as small as a test's are not split otherwise."""
    from stce_jax.training import mesh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "SMALLEST_SPLIT", 1)
        yield


@pytest.fixture(scope="module")
def optimized():
    """Compiles as users do, which takes three times as long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def made_once(directory, make):
    """What `make(directory)` printed; one worker makes it, the others wait."""
    with open(f"{directory}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        printed = directory.with_suffix(".txt")
        if not printed.exists():
            text = make(directory)
            printed.write_text(text)
        return printed.read_text()


def trained_once(name, stce, shared, data_dir, tmp_path_factory):
    """(workdir, output) of a run of `TINY` that one worker trains by `stce`; the workdir is a copy."""

    def make(directory):
        from helpers import TINY

        done = stce("train", *TINY, f"--workdir={directory}", f"--data_dir={data_dir}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    output = made_once(shared / name, make)
    return shutil.copytree(shared / name, tmp_path_factory.mktemp("runs") / "tiny"), output


@pytest.fixture(scope="session")
def tiny_run(stce_here, shared, data_dir, tmp_path_factory):
    """(workdir, output) of a finished run of a tiny STCE-ViT on the digits, made in this process by the command."""
    return trained_once("tiny", stce_here, shared, data_dir, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_process_run(stce, shared, data_dir, tmp_path_factory):
    """The same in a process of its own with two devices: other processes are compared with it to the bit."""
    return trained_once("tiny_process", stce, shared, data_dir, tmp_path_factory)


@pytest.fixture(scope="session")
def imagenet(stce_here, shared, tmp_path_factory):
    """(data_dir, file of classes): three classes of noise in ImageNet's folders, prepared as imagenet100."""

    def make(root):
        from image_sources import THREE

        rng = np.random.default_rng(0)
        for split, count in (("train", 8), ("val", 3)):
            for wnid in THREE:
                folder = root / "tree" / split / wnid
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{wnid}_{split}_{number}.JPEG")
        (root / "three.txt").write_text("\n".join(reversed(THREE)))
        words = (f"--source={root}/tree", f"--classes={root}/three.txt", f"--data_dir={root}/data")
        done = stce_here("prepare", "imagenet100", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made_once(shared / "imagenet", make)
    own = shutil.copytree(shared / "imagenet", tmp_path_factory.mktemp("imagenet"), dirs_exist_ok=True)
    return own / "data", own / "three.txt"
