"""What several test files need: the command in this process, a tiny run's words, waiting, reading output."""

import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import stce_jax
from stce_jax import cli
from stce_jax.processes.clusters import VARIABLES

# A tiny STCE-ViT on the digits: 90 steps, less than a second without compilation.
TINY = (
    "--config=digits",
    "--config.epochs=2",
    "--config.eval_every=1",
    "--config.batch_size=32",
    "--config.log_every=20",
    "--config.image_size=16",
    "--config.model.body.vit.width=16",
    "--config.model.body.vit.depth=1",
    "--config.model.body.vit.mlp_dim=32",
    "--config.model.embedding.stce.stem_widths=8,16",
    "--config.model.embedding.stce.stem_strides=2,2",
    "--config.optimizer.ema_decay=0.9",
    "--config.optimizer.warmup_epochs=0.5",
)
# A ViT of patches that compiles in a moment; an epoch of the digits are 45 steps.
SMALLEST_VIT = (
    "--config.batch_size=32",
    "--config.model.body.vit.width=8",
    "--config.model.body.vit.heads=2",
    "--config.model.body.vit.mlp_dim=8",
    "--config.model.embedding.patch.patch_size=4",
    "--config.optimizer.warmup_epochs=0.1",
)
# A recipe of ImageNet, cut down to three steps an epoch on the images of conftest's `imagenet`.
SMALL = (
    "--config.image_size=32",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.epochs=2",
    "--config.log_every=1",
    "--config.model.body.vit.width=16",
    "--config.model.body.vit.depth=1",
    "--config.model.body.vit.heads=2",
    "--config.model.body.vit.mlp_dim=16",
)

_GLOO = {"Gloo", "Rank", "is", "connected", "to", "peer", "ranks", "Expected", "number", "of"}


def run_cli(capsys, *words):
    """(exit code, standard output, standard error) of the command in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def initial(module, *inputs, seed=0, **words):
    """Variables about as large as those that `module.init` draws, by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("bias", "mean", "scale", "var"):
            return np.full(leaf.shape, float(name in ("scale", "var")), leaf.dtype)
        spread = (2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3])) ** 0.5 if leaf.ndim == 4 else 0.02
        return (spread * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    shapes = jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs, **words), *inputs)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def wait_for(condition, what, process=None, seconds=80, pause=0.005):
    """Waits until the condition holds; fails after so many seconds, or as soon as the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended without {what}: {process.communicate()[1]}")
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(pause)


def processes_of(text):
    """{number: words} of the processes whose command line has a text in it, however long the line is."""
    listed = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    found = (line.split(maxsplit=1) for line in listed.splitlines()[1:])
    return {int(number): words for number, words in found if str(text) in words}


def leaves(workdir, checkpoint="last"):
    """The arrays of a run's checkpoint, in order."""
    return jax.tree.leaves(jax.tree.map(np.asarray, stce_jax.load_run(workdir, checkpoint).variables))


def without_gloo(output):
    """The lines of a process's output but for Gloo's, which its threads may write into each other."""
    return [line for line in output.splitlines() if not set(re.findall("[A-Za-z]+", line)) <= _GLOO]


def modules_after(code):
    """The names of the modules that are loaded after some code, in a process of its own."""
    program = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def slurm(port):
    """The variables of an srun step of two tasks on this machine, for each task."""
    return lambda index: {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "SLURM_NODEID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }


def triple(address="node0:1234", count="2", index="1"):
    """The three variables by which a process finds its peers."""
    return dict(zip(VARIABLES, (address, count, index), strict=True))
