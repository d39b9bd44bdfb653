"""The sheets that `stce visualize` draws: an image beside what a model makes of it.

Shape letters: Y side of a picture in pixels, S side of the image that the model sees, h w super-token grid, K = 9
neighbours.
"""

import numpy as np
from PIL import Image

from stce_jax.analysis.drawing import introspection, pictures


def super_token_sheet(image, seen, affinities, embedding):
    """The borders of the super tokens on the image, and the super tokens in the mean colours of their pixels.

    Args:
      image: uint8 [Y, Y, 3], what the model sees at any resolution.
      seen: uint8 [S, S, 3], the same as the model sees it.
      affinities: of each iteration, [h * rows, w * columns, 9], see `iterated_affinities`.
      embedding: the `SuperTokenConvEmbed` that they are of.

    Returns:
      A `PIL.Image`: from left to right the image, the cells (S0), and each iteration.
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


def token_sheet(image, affinities, embedding, side, token):
    """The affinity of each pixel to one super token, iteration by iteration.

    Args:
      image, affinities, embedding: see `super_token_sheet`.
      side: S.
      token: (row, column) of the super token in the grid.

    Returns:
      A `PIL.Image`: the image with the super token's own cell, and heat maps of one scale, which ends at the greatest
      affinity of all.
    """
    nearest = introspection.nearest_features(embedding, side, len(image))  # [Y]
    rows, columns = introspection.nearest_tokens(embedding, side, len(image))  # [Y] each
    own = (rows == token[0])[:, None] & (columns == token[1])  # [Y, Y]
    tiles = [(pictures.draw_boundaries(image, own), f"token {token[0]},{token[1]}: its cell")]
    maps = [introspection.token_affinity(affinity, embedding.cell, *token) for affinity in affinities]
    maps = [heat[nearest[:, None], nearest] for heat in maps]  # [Y, Y] each
    greatest = max((heat.max() for heat in maps), default=1.0)
    for number, heat in enumerate(maps, 1):
        tiles.append((pictures.draw_heat(image, heat / greatest), f"iteration {number}: up to {heat.max():.2f}"))
    return pictures.sheet([tiles])


def attention_sheet(image, attention, embedding, side):
    """What the class token attends to in each block.

    Args:
      image: uint8 [Y, Y, 3], what the model sees at any resolution.
      attention: [depth, rows, columns], see `class_attention`.
      embedding: of the model.
      side: S.

    Returns:
      A `PIL.Image`: the image and a heat map a block, each of its own scale, which begins at 0 and ends at the block's
      greatest attention. Each token is drawn at its place in the grid.
    """
    rows, columns = introspection.nearest_tokens(embedding, side, len(image))  # [Y] each
    tiles = [(image, "the image")]
    for number, block in enumerate(attention, 1):
        heat = block[rows[:, None], columns]  # [Y, Y]
        caption = f"block {number}: up to {100 * block.max():.1f}%"
        tiles.append((pictures.draw_heat(image, heat / block.max()), caption))
    lines = max(1, round(np.sqrt(len(tiles) / 3)))
    width = -(-len(tiles) // lines)
    return pictures.sheet([tiles[first : first + width] for first in range(0, len(tiles), width)])
