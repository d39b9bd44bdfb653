"""A look inside a model: which super token each pixel belongs to, and what the class token attends to.

Everything is read from what modules sow under "intermediates": blocks "attention", the embedding "features" and
"affinity".

Shape letters: B batch, S image side, A heads, H W feature height and width, h w grid, N tokens, K = 9 neighbours.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int, Int32

from stce_jax.errors import ConfigError
from stce_jax.models.bodies import Body
from stce_jax.models.ops.supertoken import cell_shape, cluster_super_tokens
from stce_jax.training.state import abstract_variables

OWN = 4  # the neighbour k at offset (0, 0)
EQUAL = 1e-5  # relative difference of affinities that rounding makes in float32
NO_SUPER_TOKENS = "the model's embedding has no super tokens; use --attention, if it has a class token"
NO_AFFINITIES = "the model averages its cells, with iterations=0: its super tokens have no affinities"
NO_CLASS_TOKEN = "the model averages its tokens: there is no class token whose attention could be drawn"
NO_ATTENTION = "the model's blocks have no attention over the image's tokens that could be drawn"

Variables = Mapping[str, Any]
Cell = int | tuple[int, int]


def check_super_tokens(model: Body, image_size: int, *, affinities: bool) -> None:
    """Raises ConfigError for a body whose embedding has no super tokens; or, if asked for, no affinities to them."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    sown = jax.eval_shape(functools.partial(_sown_by_embedding, model), abstract_variables(model, image_size), images)
    if "features" not in sown or not hasattr(model.embedding, "cell"):
        raise ConfigError(NO_SUPER_TOKENS)
    if affinities and "affinity" not in sown:
        raise ConfigError(NO_AFFINITIES)


def check_class_attention(model: Body, image_size: int) -> None:
    """Raises ConfigError for a body without a class token, or without attention to draw."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    jax.eval_shape(functools.partial(class_attention, model), abstract_variables(model, image_size), images)


def iterated_affinities(
    model: Body, variables: Variables, images: Float[Array, "B S S 3"]
) -> list[Float[Array, "B H W 9"]]:
    """The affinities that each iteration of a model's clustering computes, see `cluster_super_tokens`.

    Args:
      model: a body whose embedding has super tokens.
      variables: its variables; those of the embedding are enough.
      images: normalised.

    Returns:
      An array for each iteration, H and W rounded up to whole cells; none for a model that averages its cells.

    Raises:
      ConfigError: the embedding has no super tokens.
    """
    sown, embedding = _sown_by_embedding(model, variables, images), model.embedding
    if "features" not in sown or not hasattr(embedding, "cell"):
        raise ConfigError(NO_SUPER_TOKENS)
    if "affinity" not in sown:
        return []
    (features,) = sown["features"]
    return [
        cluster_super_tokens(features, embedding.cell, iterations, border=embedding.border)[1]
        for iterations in range(1, embedding.iterations + 1)
    ]


def attention_grid(model: Body, image_size: int) -> tuple[tuple[int, int], int]:
    """How the keys lie that the class token attends to, (h, w), and how many of the embedding's tokens apart.

    Those are the tokens themselves, unless a body of stages says otherwise.
    """
    module: Any = model
    if hasattr(module, "attention_grid"):
        return module.attention_grid(image_size, image_size)
    return model.grid(image_size, image_size), 1


def class_attention(model: Body, variables: Variables, images: Float[Array, "B S S 3"]) -> Float[Array, "depth B h w"]:
    """The mean over the heads of `class_attention_by_head`; for the arguments and errors see there."""
    return jnp.stack([heads.mean(axis=1) for heads in class_attention_by_head(model, variables, images)])


def class_attention_by_head(
    model: Body, variables: Variables, images: Float[Array, "B S S 3"]
) -> list[Float[Array, "B A h w"]]:
    """What the class token, the first of the leading ones, attends to in each block, head by head.

    With a head's attention to the leading tokens, which is left out, it sums to one. Once tokens are reduced, they lie
    in no grid: the blocks from there on are left out. In a body of stages it is the blocks of the last, see
    `attention_grid`.

    Args:
      model: a body.
      variables: its variables.
      images: normalised.

    Raises:
      ConfigError: the model has no class token, or no block with attention over the whole grid.
    """
    tokens, sown = model.apply(variables, images, train=False, mutable="intermediates", method="tokens")
    if tokens.leading == tokens.registers:
        raise ConfigError(NO_CLASS_TOKEN)
    (rows, columns), _ = attention_grid(model, images.shape[1])
    drawn = []
    for weights in _sown_attention(sown.get("intermediates", {})):
        if weights.shape[-1] != tokens.leading + rows * columns:
            break
        drawn.append(weights[:, :, 0, tokens.leading :].reshape(*weights.shape[:2], rows, columns))
    if not drawn:
        raise ConfigError(NO_ATTENTION)
    return drawn


def _sown_by_embedding(model: Body, variables: Variables, images: Float[Array, "B S S 3"]) -> Variables:
    """{"features": (array,), ...}: what the embedding alone sows."""
    own = {kind: tree["embedding"] for kind, tree in variables.items() if "embedding" in tree}
    _, sown = model.embedding.apply(own, images.astype(model.dtype), train=False, mutable="intermediates")
    return sown.get("intermediates", {})


def _sown_attention(sown: Variables) -> list[Float[Array, "B A N N"]]:
    """The attention weights of the blocks in their order; those of blocks under a scan are stacked."""
    found = {
        path: array
        for path, arrays in traverse_util.flatten_dict(sown, sep="/").items()
        if path.endswith("/attention") and not path.startswith("embedding/")
        for array in arrays
    }
    blocks: list[Any] = []
    for path in sorted(found, key=numbers_as_numbers):
        blocks += list(found[path]) if found[path].ndim == 5 else [found[path]]
    return blocks


def numbers_as_numbers(path: str) -> list[int | str]:
    """Sorts blocks_2 before blocks_10."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", path)]


def super_token_labels(affinity: Float[np.ndarray, "... H W 9"], cell: Cell) -> Int32[np.ndarray, "... H W"]:
    """The super token of each pixel of a feature map: the one in the grid of greatest affinity.

    Where none exceeds the affinity to the pixel's own cell by more than rounding, as on a plain background, the pixel
    stays with its own cell.

    Args:
      affinity: see `cluster_super_tokens`. What it gives to neighbours beyond the grid (border "zero") does not count.
      cell: the cell size that it was computed with, an int or (rows, columns).

    Returns:
      y * w + x for the super token in row y, column x of the grid.
    """
    affinity = np.asarray(affinity)
    super_tokens = _neighbours(affinity.shape[-3:-1], cell)  # [H, W, 9]
    inside = np.where(super_tokens < 0, -1.0, affinity)
    inside[..., OWN] *= 1 + EQUAL
    place = inside.argmax(axis=-1)[..., None]
    return np.take_along_axis(np.broadcast_to(super_tokens, affinity.shape), place, axis=-1)[..., 0]


def grid_labels(height: int, width: int, cell: Cell) -> Int32[np.ndarray, "H W"]:
    """The cell of each pixel of a feature map: the labels before the first iteration."""
    cell_rows, cell_columns = cell_shape(cell)
    columns = -(-width // cell_columns)
    rows = np.arange(height, dtype=np.int32)[:, None] // cell_rows
    return rows * columns + np.arange(width, dtype=np.int32)[None, :] // cell_columns


def token_affinity(
    affinity: Float[np.ndarray, "... H W 9"], cell: Cell, row: int, column: int
) -> Float[np.ndarray, "... H W"]:
    """The affinity of each pixel of a feature map to one super token, 0 where that is none of its nine neighbours.

    Args:
      affinity, cell: see `super_token_labels`.
      row, column: of the super token in the grid.
    """
    affinity = np.asarray(affinity)
    columns = affinity.shape[-2] // cell_shape(cell)[1]
    is_token = _neighbours(affinity.shape[-3:-1], cell) == row * columns + column
    return np.where(is_token, affinity, 0).sum(axis=-1)


def _neighbours(shape: Sequence[int], cell: Cell) -> Int32[np.ndarray, "H W 9"]:
    """The label of each pixel's nine neighbours, -1 beyond the grid."""
    height, width = shape
    cell_rows, cell_columns = cell_shape(cell)
    rows, columns = height // cell_rows, width // cell_columns
    row = (np.arange(height) // cell_rows)[:, None] + np.repeat(np.arange(-1, 2), 3)  # [H, 9]
    column = (np.arange(width) // cell_columns)[:, None] + np.tile(np.arange(-1, 2), 3)  # [W, 9]
    row, column = row[:, None], column[None, :]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return np.where(inside, row * columns + column, -1).astype(np.int32)


def nearest_features(embedding: nn.Module, image_side: int, picture_side: int) -> Int[np.ndarray, "Y"]:
    """Which feature along a side of an image each pixel of its enlarged picture is nearest to.

    A feature lies where the embedding's `feature_places` says, in the middle of what it sees. Behind centred kernels
    with strides of s pixels altogether, feature i lies at pixel i * s: the picture's first region is then smaller, its
    last one larger than the others.

    Args:
      embedding: of a body.
      image_side, picture_side: Y, pixels of the image that the embedding sees, and of the picture.
    """
    stride, first = embedding.feature_places()
    pixel = (np.arange(picture_side) + 0.5) * image_side / picture_side - 0.5
    nearest = np.floor((pixel - first) / stride + 0.5).astype(int)
    return nearest.clip(0, -(-image_side // stride) - 1)


def nearest_tokens(
    embedding: nn.Module, image_side: int, picture_side: int
) -> tuple[Int[np.ndarray, "Y"], Int[np.ndarray, "Y"]]:
    """`nearest_features` of the tokens' grid: (rows, columns). A token is a cell of features, if there are cells."""
    features = nearest_features(embedding, image_side, picture_side)
    rows, columns = cell_shape(getattr(embedding, "cell", 1))
    return features // rows, features // columns


def nearest_keys(
    embedding: nn.Module, image_side: int, picture_side: int, grid: tuple[int, int], apart: int
) -> tuple[Int[np.ndarray, "Y"], Int[np.ndarray, "Y"]]:
    """`nearest_tokens` of the keys that the class token attends to, see `attention_grid`: (rows, columns).

    Key i lies where the embedding's token i * apart does, for convolutions between them are centred.
    """
    tokens = nearest_tokens(embedding, image_side, picture_side)
    rows, columns = (
        np.minimum((places + apart // 2) // apart, count - 1) for places, count in zip(tokens, grid, strict=True)
    )
    return rows, columns
