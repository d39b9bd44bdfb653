"""That a process on CPUs keeps the memory it frees, and that the commands have JAX compute where that memory is."""

import os
import platform
import subprocess
import sys

import pytest
from helpers import TINY
from PIL import Image

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")

# Prints how many pages the kernel gives, and clears, for what has been done before: the fewest of several times, for
# threads may need them together or one after the other.
PAGES = """
import resource
from stce_jax.platform import freed_memory
freed_memory.keep()
{given}
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step()
print(min(pages() for _ in range(20)))
"""
BUFFER = """
def step():
    b"x" * {pages} * 4096
"""
# 16 MB each; the barrier keeps XLA from making one pass of them. Commands have a thread, for signals, before JAX does.
COMPUTATION = """
import threading
threading.Thread(target=bytes, args=(5000,)).start()
freed_memory.configure_jax()
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((jax.device_count(),), ("data",))
images = jax.device_put(jnp.ones((8, 2**19)), NamedSharding(mesh, PartitionSpec("data")))
@jax.jit
def compute(images):
    for _ in range(4):
        images = jax.lax.optimization_barrier(jnp.sin(images) + 1)
    return images.sum()
def step():
    jax.block_until_ready(compute(images))
"""
# Prints how the CPU client is made, and then whatever the command does.
PROBE = """
import sys
from jax._src import xla_bridge
made = xla_bridge.xla_client.make_cpu_client
def make(*positional, **options):
    print("asynchronous:", options["asynchronous"])
    return made(*positional, **options)
xla_bridge.xla_client.make_cpu_client = make
from stce_jax.cli import main
main()
"""


def run(program, *words, **more):
    """What a process prints; its environment says nothing of memory and, unless told otherwise, of one CPU device."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    given = {name: value for name, value in given.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=given | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"} | more,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("pages", [2**12, 2**19 + 2**12])  # of 4096 bytes: 16 MiB, and more than glibc's 2 GiB
def test_a_buffer_is_given_the_pages_of_the_one_before(pages):
    again = int(run(PAGES.format(given=BUFFER.format(pages=pages))))
    assert again < 100, f"{again} of {pages} pages of a buffer like the one freed before are asked for again"


def test_what_the_user_says_of_memory_stays():
    users = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    again = int(run(PAGES.format(given=BUFFER.format(pages=2**12)), **users))
    assert again >= 2000, f"glibc was told to give memory back, and kept all but {again} of 4096 pages"


@pytest.mark.parametrize("said", [{}, {"JAX_NUM_CPU_DEVICES": "2"}, {"JAX_NUM_PROCESSES": "2"}], ids=str)
def test_a_computation_is_given_the_pages_of_the_one_before(said):
    again = int(run(PAGES.format(given=COMPUTATION), **said))
    assert again < 400, f"{again} pages of a computation's 12,000 are asked for again"


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    words = [*TINY, "--config.epochs=0.05", f"--data_dir={data_dir}", f"--workdir={workdir}"]
    return workdir, run(PROBE, "train", *words)


def test_training_computes_in_the_first_thread(trained):
    assert trained[1].startswith("asynchronous: False\n"), f"JAX computed before it was configured: {trained[1][:200]}"


@pytest.mark.parametrize("verb", ["predict", "visualize", "export", "benchmark"])
def test_commands_compute_in_the_first_thread(verb, trained, tmp_path):
    picture, output = str(tmp_path / "picture.png"), f"--output={tmp_path / 'output'}"
    Image.new("RGB", (32, 32)).save(picture)
    workdir = f"--workdir={trained[0]}"
    words = {
        "predict": [workdir, picture],
        "visualize": [workdir, output, picture],
        "export": [workdir, output],
        "benchmark": ["vit_ti_patch", "--image_size=32", "--batch_sizes=1", "--rounds=1", "--seconds=0.01"],
    }[verb]
    printed = run(PROBE, verb, *words)
    assert "asynchronous: False\n" in printed, f"JAX computed before it was configured: {printed[:200]}"
    assert "asynchronous: True\n" not in printed, printed[:200]
