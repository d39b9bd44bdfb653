"""Pictures of what a model makes of an image: regions, heat maps, sheets of tiles. NumPy and Pillow alone.

Shape letters: Y X height and width of a picture in pixels.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

LIGHT, DARK = (255, 255, 255), (20, 20, 20)  # of a boundary: beside one another they show on any image
HEAT = matplotlib.colormaps["inferno"]
MARGIN = 4  # pixels between tiles
SMALLEST_TEXT = 11  # pixels


def boundaries(labels: Int[np.ndarray, "Y X"]) -> tuple[Bool[np.ndarray, "Y X"], Bool[np.ndarray, "Y X"]]:
    """Where regions meet, at the picture's own resolution.

    Args:
      labels: the region of each pixel.

    Returns:
      (before, behind): the pixels whose right or lower neighbour, and those whose left or upper neighbour, belongs to
      another region.
    """
    before, behind = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    below, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    before[:-1] |= below
    before[:, :-1] |= right
    behind[1:] |= below
    behind[:, 1:] |= right
    return before, behind


def draw_boundaries(image: UInt8[np.ndarray, "Y X 3"], labels: Int[np.ndarray, "Y X"]) -> UInt8[np.ndarray, "Y X 3"]:
    """The image with a line between the regions: one light pixel before each boundary, a dark one behind it."""
    before, behind = boundaries(labels)
    drawn = image.copy()
    drawn[behind] = DARK
    drawn[before] = LIGHT
    return drawn


def mean_colours(image: UInt8[np.ndarray, "Y X 3"], labels: Int[np.ndarray, "Y X"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Each region, labels being at least 0, in the mean colour of its pixels, rounded."""
    flat, colours = labels.ravel(), image.reshape(-1, 3)  # [Y * X], [Y * X, 3]
    counts = np.maximum(np.bincount(flat), 1)  # labels that no pixel has are 0 / 1
    means = np.stack([np.bincount(flat, channel) / counts for channel in colours.T], axis=-1)  # [labels, 3]
    return np.round(means).astype(np.uint8)[labels]


def draw_heat(image: UInt8[np.ndarray, "Y X 3"], heat: Float[np.ndarray, "Y X"]) -> UInt8[np.ndarray, "Y X 3"]:
    """A heat map of 0..1 over the image, which is left in grey: dark violet is 0, yellow is 1."""
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[:, :, None]  # [Y, X, 1]
    colours = 255 * HEAT(heat)[:, :, :3]
    return np.round(0.4 * grey + 0.6 * colours).astype(np.uint8)


def sheet(
    rows: Sequence[Sequence[tuple[UInt8[np.ndarray, "Y X 3"], str]]],
    *,
    heat: str = "",
    footer: Sequence[str] = (),
) -> Image.Image:
    """Tiles of one size in rows, each with its caption below.

    Args:
      rows: of (tile, caption); captions may have several lines, and are cut off where a tile ends.
      heat: what the brightest colour of heat maps stands for, of one scale for all tiles; below them is a bar then,
        from 0 to this. "": none.
      footer: paragraphs below all tiles, broken into lines where the picture ends.
    """
    height, width, _ = rows[0][0][0].shape
    text = max(SMALLEST_TEXT, width // 20)
    line = round(1.6 * text)
    lines = 1 + max(caption.count("\n") for tiles in rows for _, caption in tiles)
    columns = max(map(len, rows))
    font = ImageFont.load_default(size=text)
    whole = columns * (width + MARGIN) + MARGIN
    below = [part for paragraph in footer for part in _broken(paragraph, font, whole - 2 * MARGIN)]
    tiled = len(rows) * (height + lines * line) + MARGIN
    picture = Image.new("RGB", (whole, tiled + (len(below) + bool(heat)) * line), "white")
    draw = ImageDraw.Draw(picture)
    for row, tiles in enumerate(rows):
        for column, (tile, caption) in enumerate(tiles):
            left, top = MARGIN + column * (width + MARGIN), MARGIN + row * (height + lines * line)
            picture.paste(Image.fromarray(tile), (left, top))
            for number, words in enumerate(caption.split("\n")):
                place = left + width // 2, top + height + number * line + line // 2
                draw.text(place, _shortened(words, font, width), fill="black", font=font, anchor="mm")
    if heat:
        _draw_bar(picture, heat, font, tiled, line)
    for number, words in enumerate(below, bool(heat)):
        draw.text((MARGIN, tiled + number * line + line // 2), words, fill="black", font=font, anchor="lm")
    return picture


def _draw_bar(picture: Image.Image, heat: str, font: Any, top: int, line: int) -> None:
    """Writes "0%", the colours of `draw_heat` from the least to the greatest, and what that is."""
    draw, middle = ImageDraw.Draw(picture), top + line // 2
    left = MARGIN + round(font.getlength("0% ")) + MARGIN
    width = max(16, min(picture.width // 3, round(picture.width - left - font.getlength(heat) - 3 * MARGIN)))
    colours = np.round(255 * HEAT(np.linspace(0, 1, width))[None, :, :3]).astype(np.uint8).repeat(line // 2, axis=0)
    draw.text((MARGIN, middle), "0%", fill="black", font=font, anchor="lm")
    picture.paste(Image.fromarray(colours), (left, middle - line // 4))
    end = left + width + 2 * MARGIN
    words = _shortened(heat, font, picture.width - end)
    draw.text((end, middle), words, fill="black", font=font, anchor="lm")


def _broken(paragraph: str, font: Any, width: int) -> list[str]:
    """A paragraph in lines that are at most so many pixels wide, but for words that are wider."""
    lines: list[str] = []
    for word in paragraph.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text


def png(picture: Image.Image) -> bytes:
    """A `PIL.Image` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
