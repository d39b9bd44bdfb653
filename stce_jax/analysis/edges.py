"""Whether borders between clusters lie where an image has edges: a measure that needs no labels.

Of an image's strongest gradients, the share that lies near a border. Borders that are many catch many by chance; so the
share says something only beside that of borders as many and as long that know nothing of the image.

Shape letters: n images, Y X pixels.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

STRONGEST = 0.1  # share of the pixels that count as edges
SIDES = 128  # of an image's side: what counts as near, in whole pixels; below that many, pixels that touch a border
_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green, blue in the luminance of Rec. 601


def gradients(images: UInt8[np.ndarray, "n Y X 3"]) -> Float[np.ndarray, "n Y X"]:
    """Strength of the luminance's gradient, by Sobel's filter; at the images' border pixels are repeated."""
    grey = np.pad(np.asarray(images) @ _WEIGHTS, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = grey[:, 2:] - grey[:, :-2]  # [n, Y, X + 2]
    right = grey[:, :, 2:] - grey[:, :, :-2]  # [n, Y + 2, X]
    down = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    right = right[:, :-2] + 2 * right[:, 1:-1] + right[:, 2:]
    return np.hypot(down, right)


def strongest(strength: Float[np.ndarray, "n Y X"], share: float = STRONGEST) -> Bool[np.ndarray, "n Y X"]:
    """The pixels of each image with the strongest gradients.

    Args:
      strength: of `gradients`.
      share: of the pixels, above 0 and below 1. Equal ones at the limit all count; those without any gradient never.
    """
    limits = np.quantile(strength.reshape(len(strength), -1), 1 - share, axis=1)
    return (strength >= limits[:, None, None]) & (strength > 0)


def near_borders(labels: Int[np.ndarray, "n Y X"], distance: int) -> Bool[np.ndarray, "n Y X"]:
    """The pixels that touch another region, and those at most `distance` pixels from them, along rows and columns."""
    near = np.zeros(labels.shape, bool)
    for axis in (1, 2):
        differ = np.diff(labels, axis=axis) != 0
        before, behind = [(0, 0)] * 3, [(0, 0)] * 3
        before[axis], behind[axis] = (0, 1), (1, 0)
        near |= np.pad(differ, before) | np.pad(differ, behind)
    for axis in (1, 2):
        reached = near.copy()
        for step in range(1, distance + 1):
            ahead, back = [slice(None)] * 3, [slice(None)] * 3
            ahead[axis], back[axis] = slice(step, None), slice(None, -step)
            reached[tuple(back)] |= near[tuple(ahead)]
            reached[tuple(ahead)] |= near[tuple(back)]
        near = reached
    return near


def agreement(edges: Bool[np.ndarray, "n Y X"], near: Bool[np.ndarray, "n Y X"]) -> Float[np.ndarray, "n"]:
    """The share of each image's edge pixels that lie near a border, 0..1; 0 of an image without edges."""
    counts = edges.sum(axis=(1, 2))
    return (edges & near).sum(axis=(1, 2)) / np.maximum(counts, 1)


def agreements(
    images: UInt8[np.ndarray, "n Y X 3"], labels: Int[np.ndarray, "n Y X"], grid: Int[np.ndarray, "Y X"]
) -> dict[str, Float[np.ndarray, "n"]]:
    """How much clusters follow edges, image by image, beside what they would by chance.

    Args:
      images: as the model sees them.
      labels: the cluster of each pixel.
      grid: the same of the regular cells.

    Returns:
      {"own": `agreement` with the image's own clusters, "other": with those of the next image, "grid": with the cells,
      "covered": share of all pixels near a border of the own clusters}.
    """
    distance = images.shape[1] // SIDES
    edges, near = strongest(gradients(images)), near_borders(labels, distance)
    cells = np.broadcast_to(near_borders(grid[None], distance), edges.shape)
    return {
        "own": agreement(edges, near),
        "other": agreement(edges, np.roll(near, 1, axis=0)),
        "grid": agreement(edges, cells),
        "covered": near.mean(axis=(1, 2)),
    }
