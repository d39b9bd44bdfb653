"""Train, compare and reuse vision-transformer embeddings in JAX.

The public names are imported when first used, so that importing the package starts nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "create_model": "stce_jax.models.factory",
    "list_models": "stce_jax.models.factory",
    "SuperTokenConvEmbed": "stce_jax.models.embeddings.stce",
    "cluster_super_tokens": "stce_jax.models.ops.supertoken",
    "load_run": "stce_jax.training.assemble",
    "load_weights": "stce_jax.convert.loading",
    "load_exported": "stce_jax.convert.program",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
