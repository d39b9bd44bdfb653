"""The step of `stce train` by itself, for what times it: on a batch that lies on the device, with any augmentation."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stce_jax.analysis.timing.train_step import WEIGHT_DECAY, timed_train_step
from stce_jax.models.factory import create_model
from stce_jax.training.mesh import batch_sharding, make_mesh

__all__ = ["CLASSES", "LEARNING_RATE", "WEIGHT_DECAY", "compile_step", "loss_of", "model_and_batch"]

CLASSES = 100
LEARNING_RATE = 1e-3


def as_they_are(key, step, images, labels):
    """No augmentation: images float32 [B, H, W, 3], labels [B] -> (images, targets [B, classes])."""
    del key, step
    return images, jax.nn.one_hot(labels, CLASSES)


@functools.cache
def model_and_batch(name, batch, image_size, dtype, **options):
    """(model, variables, images [B, H, W, 3], labels [B]), made once for each setting; images are noise."""
    model = create_model(name, num_classes=CLASSES, image_size=image_size, dtype=dtype, **options)
    initialize = jax.jit(functools.partial(model.init, train=False))
    variables = initialize(jax.random.key(0), jnp.zeros((1, image_size, image_size, 3)))
    images = jax.random.normal(jax.random.key(1), (batch, image_size, image_size, 3))
    return model, variables, images, jnp.arange(batch) % CLASSES


def loss_of(model):
    """(params, other variables, images, labels) -> (cross entropy, BatchNorm's statistics) of a training batch."""

    def loss(params, others, images, labels):
        given, rngs = {"params": params, **others}, {"dropout": jax.random.key(2)}
        logits, state = model.apply(given, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean(), state

    return loss


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
