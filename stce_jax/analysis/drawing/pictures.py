"""Pictures of what a model makes of an image: regions, heat maps, sheets of tiles. NumPy and Pillow alone.

Shape letters: Y X height and width of a picture in pixels.
"""

import io

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

LIGHT, DARK = (255, 255, 255), (20, 20, 20)  # of a boundary: beside one another they show on any image
HEAT = matplotlib.colormaps["inferno"]
MARGIN = 4  # pixels between tiles
SMALLEST_TEXT = 11  # pixels


def boundaries(labels):
    """Where regions meet, at the picture's own resolution.

    Args:
      labels: int [Y, X], the region of each pixel.

    Returns:
      (before, behind): bool [Y, X] each, the pixels whose right or lower neighbour, and whose left or upper neighbour,
      belongs to another region.
    """
    before, behind = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    below, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    before[:-1] |= below
    before[:, :-1] |= right
    behind[1:] |= below
    behind[:, 1:] |= right
    return before, behind


def draw_boundaries(image, labels):
    """The image with a line between the regions: one light pixel before each boundary, a dark one behind it.

    Args:
      image: uint8 [Y, X, 3].
      labels: int [Y, X].

    Returns:
      uint8 [Y, X, 3].
    """
    before, behind = boundaries(labels)
    drawn = image.copy()
    drawn[behind] = DARK
    drawn[before] = LIGHT
    return drawn


def mean_colours(image, labels):
    """Each region in the mean colour of its pixels.

    Args:
      image: uint8 [Y, X, 3].
      labels: int [Y, X], at least 0.

    Returns:
      uint8 [Y, X, 3], the means rounded.
    """
    flat, colours = labels.ravel(), image.reshape(-1, 3)  # [Y * X], [Y * X, 3]
    counts = np.maximum(np.bincount(flat), 1)  # labels that no pixel has are 0 / 1
    means = np.stack([np.bincount(flat, channel) / counts for channel in colours.T], axis=-1)  # [labels, 3]
    return np.round(means).astype(np.uint8)[labels]


def draw_heat(image, heat):
    """A heat map over the image, which is left in grey: dark violet is 0, yellow is 1.

    Args:
      image: uint8 [Y, X, 3].
      heat: float [Y, X] in 0..1.

    Returns:
      uint8 [Y, X, 3].
    """
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[:, :, None]  # [Y, X, 1]
    colours = 255 * HEAT(heat)[:, :, :3]
    return np.round(0.4 * grey + 0.6 * colours).astype(np.uint8)


def sheet(rows):
    """Tiles of one size in rows, each with its caption below.

    Args:
      rows: lists of (uint8 [Y, X, 3], caption).

    Returns:
      A `PIL.Image`, RGB.
    """
    height, width, _ = rows[0][0][0].shape
    text = max(SMALLEST_TEXT, width // 20)
    line = round(1.6 * text)
    columns = max(map(len, rows))
    size = columns * (width + MARGIN) + MARGIN, len(rows) * (height + line) + MARGIN
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=text)
    for row, tiles in enumerate(rows):
        for column, (tile, caption) in enumerate(tiles):
            left, top = MARGIN + column * (width + MARGIN), MARGIN + row * (height + line)
            picture.paste(Image.fromarray(tile), (left, top))
            draw.text((left + width // 2, top + height + line // 2), caption, fill="black", font=font, anchor="mm")
    return picture


def png(picture):
    """A `PIL.Image` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
