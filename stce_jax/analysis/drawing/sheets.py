"""The sheets that `stce visualize` draws: an image beside what a model makes of it.

Shape letters: Y side of a picture in pixels, S side of the image that the model sees, H W features, h w grid.
"""

from collections.abc import Sequence

import numpy as np
from flax import linen as nn
from jaxtyping import Float, UInt8
from PIL import Image

from stce_jax.analysis.drawing import introspection, pictures


def super_token_sheet(
    image: UInt8[np.ndarray, "Y Y 3"],
    seen: UInt8[np.ndarray, "S S 3"],
    affinities: Sequence[Float[np.ndarray, "H W 9"]],
    embedding: nn.Module,
) -> Image.Image:
    """The borders of the super tokens on the image, and the super tokens in the mean colours of their pixels.

    Args:
      image: what the model sees, at any resolution.
      seen: the same as the model sees it.
      affinities: of each iteration, see `iterated_affinities`.
      embedding: that they are of.

    Returns:
      From left to right the image, the cells (S0), and each iteration.
    """
    side, picture_side = len(seen), len(image)
    nearest = introspection.nearest_features(embedding, side, picture_side)  # [Y]
    count = nearest[-1] + 1
    maps = {"S0: the cells": introspection.grid_labels(count, count, embedding.cell)}
    for number, affinity in enumerate(affinities, 1):
        maps[f"iteration {number}"] = introspection.super_token_labels(affinity, embedding.cell)
    enlarged = np.asarray(Image.fromarray(seen).resize((picture_side, picture_side), Image.Resampling.NEAREST))
    above, below = [(image, "the image")], [(enlarged, f"the model's {side} x {side} pixels")]
    for caption, labels in maps.items():
        labels = labels[nearest[:, None], nearest]  # [Y, Y]
        above.append((pictures.draw_boundaries(image, labels), caption))
        below.append((pictures.mean_colours(image, labels), "mean colours"))
    return pictures.sheet([above, below])


def token_sheet(
    image: UInt8[np.ndarray, "Y Y 3"],
    affinities: Sequence[Float[np.ndarray, "H W 9"]],
    embedding: nn.Module,
    side: int,
    token: tuple[int, int],
) -> Image.Image:
    """The affinity of each pixel to one super token, iteration by iteration.

    Args:
      image, affinities, embedding: see `super_token_sheet`.
      side: S.
      token: (row, column) of the super token in the grid.

    Returns:
      The image with the super token's own cell, and heat maps of one scale, which ends at the greatest affinity of all.
    """
    nearest = introspection.nearest_features(embedding, side, len(image))  # [Y]
    rows, columns = introspection.nearest_tokens(embedding, side, len(image))  # [Y] each
    own = (rows == token[0])[:, None] & (columns == token[1])  # [Y, Y]
    tiles = [(pictures.draw_boundaries(image, own), f"token {token[0]},{token[1]}: its cell")]
    maps = [introspection.token_affinity(affinity, embedding.cell, *token) for affinity in affinities]
    maps = [heat[nearest[:, None], nearest] for heat in maps]  # [Y, Y] each
    greatest = max((float(heat.max()) for heat in maps), default=0.0) or 1.0
    for number, heat in enumerate(maps, 1):
        tiles.append((pictures.draw_heat(image, heat / greatest), f"iteration {number}: up to {heat.max():.1%}"))
    return pictures.sheet([tiles], heat=f"{greatest:.1%} affinity to the token, one scale for all iterations")


def attention_sheet(
    image: UInt8[np.ndarray, "Y Y 3"],
    attention: Float[np.ndarray, "depth h w"],
    embedding: nn.Module,
    side: int,
    apart: int = 1,
) -> Image.Image:
    """What the class token attends to in each block.

    Args:
      image: what the model sees, at any resolution.
      attention: see `class_attention`.
      embedding: of the model.
      side: S.
      apart: how many of the embedding's tokens lie from one key to the next, see `introspection.attention_grid`.

    Returns:
      The image and a heat map a block (counted from 0, as in the config), all of one scale, which begins at 0 and ends
      at the greatest attention of all blocks. Each token is drawn at its place in the grid.
    """
    grid = attention.shape[1:]
    rows, columns = introspection.nearest_keys(embedding, side, len(image), grid, apart)  # [Y] each
    tiles, greatest = [(image, "the image")], float(attention.max()) or 1.0
    for number, block in enumerate(attention):
        heat = block[rows[:, None], columns]  # [Y, Y]
        caption = f"block {number}: up to {100 * block.max():.1f}%"
        tiles.append((pictures.draw_heat(image, heat / greatest), caption))
    lines = max(1, round(np.sqrt(len(tiles) / 3)))
    width = -(-len(tiles) // lines)
    in_rows = [tiles[first : first + width] for first in range(0, len(tiles), width)]
    equal = 1 / (grid[0] * grid[1])
    scale = f"{greatest:.1%} of the class token's attention, one scale for all blocks; equal shares are {equal:.1%}"
    return pictures.sheet(in_rows, heat=scale)
