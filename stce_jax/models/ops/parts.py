"""A batch in parts, which XLA for CPUs computes side by side.

XLA's convolutions on CPUs have one thread each, or not much more: within one they split a row of pixels at most.
Several of fewer images have several threads, which can save more than joining their results costs.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

PARTS = 4  # a constant: the sums over a batch shall not depend on the number of cores
_whole = jax.make_user_context(False)


@contextlib.contextmanager
def whole_batches() -> Iterator[None]:
    """For programs that run elsewhere: what is traced within computes no batch in parts."""
    with _whole(True):
        yield


def number_of_parts(batch: int) -> int:
    """How many parts a batch is computed in: 1 but on a single CPU device, for several have a part each already."""
    if _whole.value or not isinstance(batch, int) or batch % PARTS:  # `jax.export` has batches without a number
        return 1
    return PARTS if jax.device_count() == 1 and jax.default_backend() == "cpu" else 1


def by_parts(
    function: Callable[[Shaped[Array, "b *rest"]], Shaped[Array, "b *other"]], inputs: Shaped[Array, "B *rest"]
) -> Shaped[Array, "B *other"]:
    """What a function that takes each image by itself makes of a batch."""
    parts = number_of_parts(inputs.shape[0])
    return function(inputs) if parts == 1 else jnp.concatenate([function(part) for part in jnp.split(inputs, parts)])
