"""Eight CPU devices, a compilation cache shared with the processes that tests start, and a tiny trained run."""

import os
import re
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import pytest

# The first example of a property compiles; no deadline makes sense. Derandomised: every run tries the same examples.
hypothesis.settings.register_profile("stce", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("stce")

_GLOO = {"Gloo", "Rank", "is", "connected", "to", "peer", "ranks", "Expected", "number", "of"}


def without_gloo(output):
    """The lines of a process's output but for Gloo's, which its threads may write into each other."""
    return [line for line in output.splitlines() if not set(re.findall("[A-Za-z]+", line)) <= _GLOO]


@pytest.fixture(scope="session")
def test_data():
    """The folder named by STCE_TEST_DATA: golden vectors and real images that are not part of this repository."""
    folder = os.environ.get("STCE_TEST_DATA")
    if not folder:
        pytest.skip("STCE_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A data directory, shared by all tests, in which the digits are prepared once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def stce():
    """Runs `stce WORDS...` in a process of its own with two devices; returns it completed, output as text."""

    def run(*words, env=None, **options):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"} | (env or {})
        command = [sys.executable, "-m", "stce_jax", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **options)

    return run


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
def quick_compilation():
    """Half the time to compile, for slower code. Whole runs are tested as users compile them, in test_train.py."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


TINY = (
    "--config=digits",
    "--config.epochs=2",
    "--config.eval_every=1",
    "--config.batch_size=32",
    "--config.log_every=20",
    "--config.image_size=16",
    "--config.model.body.vit.width=16",
    "--config.model.body.vit.depth=2",
    "--config.model.body.vit.mlp_dim=32",
    "--config.model.embedding.stce.stem_widths=8,16",
    "--config.model.embedding.stce.stem_strides=2,2",
    "--config.optimizer.ema_decay=0.9",
    "--config.optimizer.warmup_epochs=0.5",
)


@pytest.fixture(scope="session")
def tiny_run(stce, data_dir, tmp_path_factory):
    """(workdir, output) of a finished run of a tiny STCE-ViT on the digits, made through the command line."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    done = stce("train", *TINY, f"--workdir={workdir}", f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout
