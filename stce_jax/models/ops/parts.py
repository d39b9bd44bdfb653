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

from stce_jax.platform.backends import has_one_cpu
from stce_jax.platform.cpu_library import onednn_computes

# (how many, each with more numbers than this), the first that fits: many of large maps alone, for each takes time to
# compile. XLA has a second thread take part only where more than 8 operations are ready (kSplitThreshold in
# xla/backends/cpu/runtime/thunk.h). The number of cores does not count: sums over a batch shall not depend on it.
PARTS = ((16, 2**16), (8, 2**16), (4, 0))
_whole = jax.make_user_context(False)


@contextlib.contextmanager
def whole_batches() -> Iterator[None]:
    """For programs that run elsewhere: what is traced within computes no batch in parts."""
    with _whole(True):
        yield


def computed_here(shape: tuple[int, ...]) -> bool:
    """Whether this process computes a batch of this shape, on a single CPU device, and not as a part of another."""
    if _whole.value or not isinstance(shape[0], int):  # `jax.export` has batches without a number
        return False
    return has_one_cpu()


def number_of_parts(shape: tuple[int, ...]) -> int:
    """How many parts a batch of this shape is computed in: 1 but on a single CPU device; several have their own parts.

    16 or 8, if each has more than 2**16 numbers then, or else 4; 1 if they do not divide the batch.
    """
    batch = shape[0]
    if not computed_here(shape):
        return 1
    fitting = (parts for parts, numbers in PARTS if batch % parts == 0 and math.prod(shape) > parts * numbers)
    return next(fitting, 1)


def by_parts(
    function: Callable[[Shaped[Array, "b *rest"]], Shaped[Array, "b *other"]], inputs: Shaped[Array, "B *rest"]
) -> Shaped[Array, "B *other"]:
    """What a function that takes each image by itself makes of a batch; it gets each part whole.

    Convolutions by oneDNN keep all cores busy with a whole batch.
    """
    parts = number_of_parts(inputs.shape)
    if parts == 1 or (inputs.dtype == jnp.float32 and onednn_computes()):
        return function(inputs)
    with whole_batches():
        return jnp.concatenate([function(part) for part in jnp.split(inputs, parts)])
