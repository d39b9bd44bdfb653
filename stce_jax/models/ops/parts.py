"""A batch in parts, which XLA for CPUs computes side by side.

XLA's convolutions on CPUs have one thread each, or not much more: within one they split a row of pixels at most.
Several of fewer images have several threads, which can save more than joining their results costs.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

# By the batch alone: the sums over it shall not depend on the number of cores. XLA has a second thread take part only
# where more than 8 operations are ready (kSplitThreshold in xla/backends/cpu/runtime/thunk.h).
PARTS = 4
MORE_PARTS = (16, 8)  # of large maps alone, for each part takes time to compile
LARGE = 2**16  # numbers of a part
_whole = jax.make_user_context(False)


@contextlib.contextmanager
def whole_batches() -> Iterator[None]:
    """For programs that run elsewhere: what is traced within computes no batch in parts."""
    with _whole(True):
        yield


def number_of_parts(shape: tuple[int, ...]) -> int:
    """How many parts a batch of this shape is computed in: 1 but on a single CPU device; several have their own parts.

    16 or 8, if each has more than 2**16 numbers then, or else 4; 1 if they do not divide the batch.
    """
    batch = shape[0]
    if _whole.value or not isinstance(batch, int):  # `jax.export` has batches without a number
        return 1
    if jax.device_count() > 1 or jax.default_backend() != "cpu":
        return 1
    for parts in MORE_PARTS:
        if batch % parts == 0 and math.prod(shape) > parts * LARGE:
            return parts
    return 1 if batch % PARTS else PARTS


def by_parts(
    function: Callable[[Shaped[Array, "b *rest"]], Shaped[Array, "b *other"]], inputs: Shaped[Array, "B *rest"]
) -> Shaped[Array, "B *other"]:
    """What a function that takes each image by itself makes of a batch."""
    parts = number_of_parts(inputs.shape)
    return function(inputs) if parts == 1 else jnp.concatenate([function(part) for part in jnp.split(inputs, parts)])
