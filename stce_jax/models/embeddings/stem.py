"""What embeddings with a stack of strided convolutions have in common."""

import math
from collections.abc import Sequence

from stce_jax.errors import ConfigError


def check_stem(widths: Sequence[int], strides: Sequence[int]) -> None:
    """Raises ConfigError unless there is one positive width and one positive stride a module."""
    positive = all(isinstance(entry, int) and entry > 0 for entry in (*widths, *strides))
    if len(widths) != len(strides) or not positive:
        raise ConfigError(f"stem_widths {widths} and stem_strides {strides} need one positive entry a module each")


def strided_grid(height: int, width: int, strides: Sequence[int]) -> tuple[int, int]:
    """The sides of the feature map after convolutions of these strides, each rounded up."""
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
    return height, width


def stem_places(strides: Sequence[int]) -> tuple[int, float]:
    """See `feature_places`: kernels are centred, so behind a stride of s pixels feature i lies at pixel i s."""
    return math.prod(strides), 0.0
