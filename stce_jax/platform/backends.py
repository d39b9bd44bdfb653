"""Forms of an operation by the backend that computes it. JAX must be imported already."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

_compiled_for = jax.make_user_context("")


def has_one_cpu() -> bool:
    """Whether JAX has a single CPU device, and nothing else, to compute with by default."""
    return jax.device_count() == 1 and jax.default_backend() == "cpu"


def by_backend(*operands: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`, which traces and differentiates all forms, and leaves the choice to XLA.

    Within `compiled_for` a form for another backend is left out, and the only one that remains is called.

    Args:
      operands: of each form: arrays, or trees of arrays.
      default: the form of all other platforms.
      forms: {"cpu", "cuda", "rocm" or "tpu": a form}.
    """
    backend = _compiled_for.value
    if backend:
        own = ("cuda", "rocm") if backend == "gpu" else (backend,)
        forms = {platform: form for platform, form in forms.items() if platform in own}
        if backend in forms or not forms:
            return forms.get(backend, default)(*operands)
    return jax.lax.platform_dependent(*operands, default=default, **forms)


@contextlib.contextmanager
def compiled_for(backend: str) -> Iterator[None]:
    """What is traced within is compiled for one backend alone, "cpu", "gpu" or "tpu": see `by_backend`."""
    with _compiled_for(backend):
        yield
