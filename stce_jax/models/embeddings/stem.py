"""What embeddings with a stack of strided convolutions have in common.

Shape letters: B batch, H W image height and width, h w those of the stack's output, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_whole, shown
from stce_jax.models.conv_layers import ConvModule
from stce_jax.models.layers import is_training
from stce_jax.models.ops.parts import by_parts
from stce_jax.models.remat import remat

MOST_MODULES = 64
LARGEST_WIDTH = 16_384  # channels
LARGEST_STRIDE = 64


def check_stem(widths: Sequence[int], strides: Sequence[int]) -> None:
    """Raises ConfigError unless at most 64 modules have one width and one stride each, both in their range."""
    for option, entries, largest in (("stem_widths", widths, LARGEST_WIDTH), ("stem_strides", strides, LARGEST_STRIDE)):
        if not isinstance(entries, tuple | list) or len(entries) > MOST_MODULES:
            raise ConfigError(f"{option} is {shown(entries)}; it must be a list of at most {MOST_MODULES} numbers")
        for entry in entries:
            check_whole(f"an entry of {option} {shown(entries)}", entry, 1, largest)
    if len(widths) != len(strides):
        raise ConfigError(
            f"stem_widths {shown(widths)} and stem_strides {shown(strides)} need one positive entry a module each"
        )


def conv_stack(
    embedding: Any,
    images: Float[Array, "B H W 3"],
    train: bool | None,
    *,
    kind: Any = ConvModule,
    last: Mapping[str, Any] | None = None,
) -> Float[Array, "B h w C"]:
    """What an embedding's convolution modules, module_1, module_2, ... of it, make of images, one after the other.

    In evaluation images know nothing of each other. Then each part of a batch goes through all modules by itself: XLA
    for CPUs computes such parts side by side, and need not join them after each module, see `parts.by_parts`.

    Args:
      embedding: has `stem_widths`, `stem_strides`, `dtype`, `axis_name` and `remat`. Within its own call, for flax
        makes the modules its parts.
      kind: `ConvModule` or `EarlyConvModule`.
      last: more options of the last module.
    """
    shapes = list(zip(embedding.stem_widths, embedding.stem_strides, strict=True))
    make = remat(kind, embedding.remat)
    modules = []
    for number, (width, stride) in enumerate(shapes, start=1):
        options = {"dtype": embedding.dtype, "axis_name": embedding.axis_name, "name": f"module_{number}"}
        if number == len(shapes):
            options |= last or {}
        modules.append(make(width, stride, **options))

    def stack(images: Array) -> Array:
        for module in modules:
            images = module(images, train=train)
        return images

    if is_training(embedding, train) or embedding.is_mutable_collection("intermediates"):
        return stack(images)  # what a module makes of them is one array for who looks at it
    return by_parts(stack, images.astype(embedding.dtype))


def strided_grid(height: int, width: int, strides: Sequence[int]) -> tuple[int, int]:
    """The sides of the feature map after convolutions of these strides, each rounded up."""
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
    return height, width


def stem_places(strides: Sequence[int]) -> tuple[int, float]:
    """See `feature_places`: kernels are centred, so behind a stride of s pixels feature i lies at pixel i s."""
    return math.prod(strides), 0.0


def halvings(stride: int) -> int | None:
    """How often `stride` pixels are halved to 1; None if they are no power of two, or fewer than 2."""
    count = stride.bit_length() - 1
    return count if count > 0 and stride == 2**count else None


def narrow_stem(stride: int) -> dict[str, Any]:
    """Options of a stack as in Table 5, followed by a halving, for `stride` pixels between two tokens.

    A pair of modules for each halving but the last: (16, 32, 32, 64, 64, 64) channels for 16 pixels, (16, 32) for 4.
    For 2 pixels there are the first two modules, with stride 1.
    """
    count = halvings(stride)
    if count is None:
        return {}
    pairs = max(count - 1, 1)
    widths = (16, 32, 32, *[64] * (2 * pairs))[: 2 * pairs]
    return {"stem_widths": widths, "stem_strides": (2, 1) * pairs if count > 1 else (1, 1)}
