"""A look inside a model: which super token each pixel belongs to, and what the class token attends to.

Shape letters: B batch, H W feature height and width, h w super-token grid, N tokens, K = 9 neighbours.
"""

import math
import re

import jax.numpy as jnp
import numpy as np

from stce_jax.errors import ConfigError
from stce_jax.models.embeddings import PatchEmbed, SuperTokenConvEmbed
from stce_jax.models.ops.supertoken import cell_shape, cluster_super_tokens

OWN = 4  # the neighbour k at offset (0, 0)
EQUAL = 1e-5  # relative difference of affinities that rounding makes in float32


def check_super_tokens(model):
    """Refuses a `VisionTransformer` of another embedding than the super-token one by a ConfigError."""
    if not isinstance(model.embedding, SuperTokenConvEmbed):
        raise ConfigError("the model's embedding has no super tokens; use --attention, which works with any embedding")


def check_class_token(model):
    """Refuses a `VisionTransformer` that averages its tokens by a ConfigError."""
    if model.pooling != "class":
        raise ConfigError("the model averages its tokens: there is no class token whose attention could be drawn")


def iterated_affinities(model, variables, images):
    """The affinities that each iteration of a model's clustering computes.

    Args:
      model: `VisionTransformer` with the super-token embedding.
      variables: its variables; those of the embedding are enough.
      images: float32 [B, S, S, 3], normalised.

    Returns:
      A list of T arrays [B, h * rows, w * columns, 9], see `cluster_super_tokens`; empty for a model whose `iterations`
      are 0.

    Raises:
      ConfigError: another embedding.
    """
    embedding = model.embedding
    check_super_tokens(model)
    own = {kind: tree["embedding"] for kind, tree in variables.items() if "embedding" in tree}
    _, sown = embedding.apply(own, images.astype(model.dtype), train=False, mutable="intermediates")
    (features,) = sown["intermediates"]["features"]
    return [
        cluster_super_tokens(features, embedding.cell, iterations, border=embedding.border)[1]
        for iterations in range(1, embedding.iterations + 1)
    ]


def class_attention(model, variables, images):
    """What the class token attends to in each block, the mean over the heads.

    Args:
      model: `VisionTransformer` with any embedding and a class token.
      variables: its variables.
      images: float32 [B, S, S, 3], normalised.

    Returns:
      [depth, B, rows, columns] float32: its attention to the tokens of the embedding's grid. With its attention to
      itself, which is left out, they sum to one.

    Raises:
      ConfigError: the model has no class token.
    """
    check_class_token(model)
    _, sown = model.apply(variables, images, train=False, mutable="intermediates", method="tokens")
    sown = sown["intermediates"]
    if model.scan_layers:
        (weights,) = sown["blocks"]["attention"]["attention"]  # [depth, B, A, 1 + N, 1 + N]
    else:
        names = sorted((name for name in sown if re.fullmatch(r"blocks_\d+", name)), key=lambda name: int(name[7:]))
        weights = jnp.stack([sown[name]["attention"]["attention"][0] for name in names])
    rows, columns = model.embedding.grid(*images.shape[1:3])
    attention = weights[:, :, :, 0, 1:].mean(axis=2)  # [depth, B, N]
    return attention.reshape(*attention.shape[:2], rows, columns)


def super_token_labels(affinity, cell):
    """The super token of each pixel of a feature map: the one in the grid of greatest affinity.

    Where none is greater than its own cell's but for rounding, as on a plain background, it stays with that.

    Args:
      affinity: [..., h * rows, w * columns, 9], see `cluster_super_tokens`. What it gives to neighbours beyond the grid
        (border "zero") does not count.
      cell: the cell size that it was computed with, an int or (rows, columns).

    Returns:
      int32 [..., h * rows, w * columns]: y * w + x for the super token in row y, column x of the grid.
    """
    affinity = np.asarray(affinity)
    super_tokens = _neighbours(affinity.shape[-3:-1], cell)  # [h * rows, w * columns, 9]
    inside = np.where(super_tokens < 0, -1.0, affinity)
    inside[..., OWN] *= 1 + EQUAL
    place = inside.argmax(axis=-1)[..., None]
    return np.take_along_axis(np.broadcast_to(super_tokens, affinity.shape), place, axis=-1)[..., 0]


def grid_labels(height, width, cell):
    """The cell of each pixel of a [height, width] feature map, int32: the labels before the first iteration."""
    cell_rows, cell_columns = cell_shape(cell)
    columns = -(-width // cell_columns)
    rows = np.arange(height, dtype=np.int32)[:, None] // cell_rows
    return rows * columns + np.arange(width, dtype=np.int32)[None, :] // cell_columns


def token_affinity(affinity, cell, row, column):
    """The affinity of each pixel of a feature map to one super token, 0 where that is none of its nine neighbours.

    Args:
      affinity, cell: see `super_token_labels`.
      row, column: of the super token in the grid.

    Returns:
      [..., h * rows, w * columns], in the dtype of `affinity`.
    """
    affinity = np.asarray(affinity)
    columns = affinity.shape[-2] // cell_shape(cell)[1]
    is_token = _neighbours(affinity.shape[-3:-1], cell) == row * columns + column
    return np.where(is_token, affinity, 0).sum(axis=-1)


def _neighbours(shape, cell):
    """The label of each pixel's nine neighbours, -1 beyond the grid: int32 [h * rows, w * columns, 9]."""
    height, width = shape
    cell_rows, cell_columns = cell_shape(cell)
    rows, columns = height // cell_rows, width // cell_columns
    row = (np.arange(height) // cell_rows)[:, None] + np.repeat(np.arange(-1, 2), 3)  # [h * rows, 9]
    column = (np.arange(width) // cell_columns)[:, None] + np.tile(np.arange(-1, 2), 3)  # [w * columns, 9]
    row, column = row[:, None], column[None, :]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return np.where(inside, row * columns + column, -1).astype(np.int32)


def nearest_features(embedding, image_side, picture_side):
    """Which feature along a side of an image each pixel of its enlarged picture is nearest to.

    A feature lies in the middle of what its convolutions see: their kernels are centred, so that behind strides of s
    pixels altogether feature i lies at pixel i * s, and the picture's first region is smaller, its last larger than the
    others. Patches are features that lie in the middle of their pixels.

    Args:
      embedding: of a `VisionTransformer`.
      image_side, picture_side: pixels of the image that the embedding sees, and of the picture.

    Returns:
      int [picture_side].
    """
    patches = isinstance(embedding, PatchEmbed)
    stride = embedding.patch_size if patches else math.prod(embedding.stem_strides)
    first = (stride - 1) / 2 if patches else 0.0
    pixel = (np.arange(picture_side) + 0.5) * image_side / picture_side - 0.5
    nearest = np.floor((pixel - first) / stride + 0.5).astype(int)
    return nearest.clip(0, -(-image_side // stride) - 1)


def nearest_tokens(embedding, image_side, picture_side):
    """`nearest_features` of the tokens' grid: (rows, columns), int [picture_side] each."""
    features = nearest_features(embedding, image_side, picture_side)
    cell = cell_shape(embedding.cell) if isinstance(embedding, SuperTokenConvEmbed) else (1, 1)
    return tuple(features // side for side in cell)
