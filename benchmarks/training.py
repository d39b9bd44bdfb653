"""The step of `stce train` by itself, for what times it: on a batch that lies on the device, with any augmentation."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from stce_jax.recipe import optimizers as optim
from stce_jax.training.mesh import batch_sharding, make_mesh
from stce_jax.training.state import TrainState
from stce_jax.training.step import make_train_step

CLASSES = 100
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05


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
    optimizer = optim.make_optimizer(
        LEARNING_RATE, weight_decay=WEIGHT_DECAY, beta1=0.9, beta2=0.999, epsilon=1e-8, clip_norm=0.0
    )
    variables = jax.tree.map(lambda leaf: leaf.copy(), variables)  # the step will reuse their memory
    state = TrainState(np.zeros((), np.int32), variables, jax.jit(optimizer.init)(variables["params"]), None)
    mesh = make_mesh(1)
    train_step = make_train_step(model, optimizer, augment, ema_decay=0.0, state=state, mesh=mesh)
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
