"""The step of `stce train` by itself, for what times it: on a batch that lies on the device, with any augmentation."""

import time
from typing import Any, NamedTuple

import jax

from stce_jax.analysis.timing.train_step import WEIGHT_DECAY, timed_train_step
from stce_jax.training.mesh import batch_sharding, make_mesh

__all__ = ["CLASSES", "LEARNING_RATE", "WEIGHT_DECAY", "compile_step"]

CLASSES = 100
LEARNING_RATE = 1e-3


def as_they_are(key, step, images, labels):
    """No augmentation: images float32 [B, H, W, 3], labels [B] -> (images, targets [B, classes])."""
    del key, step
    return images, jax.nn.one_hot(labels, CLASSES)


class Step(NamedTuple):
    """A compiled step.

    Attributes:
      call: makes one step; returns arrays that are there when it is done.
      temporary_bytes: of the program on all devices, as XLA has planned them.
      compile_seconds: what compiling it took.
    """

    call: Any
    temporary_bytes: int
    compile_seconds: float


def compile_step(model, variables, images, labels, augment=as_they_are):
    """Compiles the train step for a batch, images [B, H, W, 3] and labels int32 [B], split over all devices.

    The variables passed in stay whole.
    """
    variables = jax.tree.map(lambda leaf: leaf.copy(), variables)  # the step will reuse their memory
    mesh = make_mesh(1)
    train_step, state = timed_train_step(model, variables, augment, mesh, learning_rate=LEARNING_RATE)
    batch = jax.device_put({"image": images, "label": labels}, batch_sharding(mesh))
    key = jax.random.key(0)
    start = time.perf_counter()
    compiled = train_step.lower(state, batch, key).compile()
    took = time.perf_counter() - start
    state, batch, key = jax.device_put((state, batch, key), compiled.input_shardings[0])

    def call():
        nonlocal state
        state, metrics = compiled(state, batch, key)
        return state, metrics

    return Step(call, compiled.memory_analysis().temp_size_in_bytes * mesh.size, took)
