"""How a grid of cells is cut into blocks, so that a comparison with the 3x3 cells around a pixel is a product.

All pixels of a block are multiplied with all cells that any of them sees, and a mask leaves each pixel its nine:
products in place of gathers.

Shape letters: B batch; H W feature height and width, padded to whole cells; h w grid of cells; C channels; G = v u
blocks, v down and u across, of m x n cells each; P pixels of a block; R = (m + 2) (n + 2) cells that they can see: the
block's own and one cell of border around it.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Pair = tuple[int, int]  # along rows, along columns


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where every pixel and cell lies; hashable, so that it can be static data of a pytree.

    Attributes:
      grid: (h, w).
      cell: size of a cell in pixels.
      border: "zero": a pixel compares itself with cells beyond the grid, too; "mask": it does not.
      count: (v, u).
      sides: (m, n).
    """

    grid: Pair
    cell: Pair
    border: str
    count: Pair
    sides: Pair

    @property
    def missing(self) -> list[int]:
        """Rows and columns of cells that fill up the last blocks."""
        return [n * m - side for n, m, side in zip(self.count, self.sides, self.grid, strict=True)]

    @functools.cached_property
    def near(self) -> Bool[np.ndarray, "P R"]:
        """The nine cells around each pixel's own."""
        (own_row, own_column), (row, column) = self._own_cells, self._seen_cells
        return (abs(own_row[:, None] - row) <= 1) & (abs(own_column[:, None] - column) <= 1)

    @functools.cached_property
    def real(self) -> Bool[np.ndarray, "G P"] | None:
        """False for pixels that only fill up the last blocks; None if there are none."""
        (own_row, own_column), (top, left) = self._own_cells, self._corners
        real = (top + own_row < self.grid[0]) & (left + own_column < self.grid[1])
        return None if real.all() else real

    @functools.cached_property
    def visible(self) -> Bool[np.ndarray, "blocks P R"]:
        """The cells that each pixel compares itself with; `blocks` is 1 where they are the same in all blocks."""
        if self.border == "zero":
            return self.near[None]
        (row, column), (top, left) = self._seen_cells, self._corners
        row, column = top + row, left + column  # each [G, R]
        inside = (row >= 0) & (row < self.grid[0]) & (column >= 0) & (column < self.grid[1])
        visible = self.near & inside[:, None, :]
        # Pixels that are not real need something to divide by, too.
        return visible if self.real is None else visible | ~self.real[:, :, None]

    @property
    def _own_cells(self) -> list[Int[np.ndarray, "P"]]:
        return _places(self.sides, self.cell)

    @property
    def _seen_cells(self) -> list[Int[np.ndarray, "R"]]:
        return _places(self.sides, (1, 1), border=1)

    @property
    def _corners(self) -> list[Int[np.ndarray, "G 1"]]:
        """(row, column) of each block's first cell."""
        corners = zip(np.indices(self.count), self.sides, strict=True)
        return [index.reshape(-1, 1) * side for index, side in corners]


def cut(grid: Pair, cell: Pair, border: str, largest: Pair) -> Layout:
    """Cuts a grid into equal blocks, as few as possible, of at most `largest` cells."""
    v, u = (-(-side // limit) for side, limit in zip(grid, largest, strict=True))
    return Layout(grid, cell, border, (v, u), (-(-grid[0] // v), -(-grid[1] // u)))


def _places(sides: Pair, cell: Pair, border: int = 0) -> list[Int[np.ndarray, "P"]]:
    """(row, column) of the cell of every pixel of a block, row by row, counted from the block's first cell."""
    places = [np.repeat(np.arange(-border, n + border), size) for n, size in zip(sides, cell, strict=True)]
    return [place.reshape(-1) for place in np.meshgrid(*places, indexing="ij")]


def to_blocks(pixels: Float[Array, "B H W C"], layout: Layout) -> Float[Array, "B G P C"]:
    """The pixels of each block; with one block across it moves nothing."""
    batch, _, _, channels = pixels.shape
    (v, u), (m, n), (cell_rows, cell_columns) = layout.count, layout.sides, layout.cell
    below, right = layout.missing
    pixels = jnp.pad(pixels, ((0, 0), (0, below * cell_rows), (0, right * cell_columns), (0, 0)))
    pixels = pixels.reshape(batch, v, m * cell_rows, u, n * cell_columns, channels)
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(batch, v * u, m * cell_rows * n * cell_columns, channels)


def from_blocks(blocks: Float[Array, "B G P C"], layout: Layout) -> Float[Array, "B H W C"]:
    """The reverse of `to_blocks`."""
    batch, _, _, channels = blocks.shape
    (v, u), (m, n), (cell_rows, cell_columns) = layout.count, layout.sides, layout.cell
    pixels = blocks.reshape(batch, v, u, m * cell_rows, n * cell_columns, channels)
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(batch, v * m * cell_rows, u * n * cell_columns, channels)
    return pixels[:, : layout.grid[0] * cell_rows, : layout.grid[1] * cell_columns]


def seen_by_blocks(cells: Float[Array, "B h w C"], layout: Layout) -> Float[Array, "B G R C"]:
    """The cells that each block's pixels can see; zeros beyond the grid."""
    batch, _, _, channels = cells.shape
    (v, u), (m, n) = layout.count, layout.sides
    below, right = layout.missing
    around = jnp.pad(cells, ((0, 0), (1, 1 + below), (1, 1 + right), (0, 0)))  # [B, vm+2, un+2, C]
    around = _windows(_windows(around, 1, m), 3, n)  # [B, v, m+2, u, n+2, C]
    return around.transpose(0, 1, 3, 2, 4, 5).reshape(batch, v * u, (m + 2) * (n + 2), channels)


def add_to_grid(contributions: Float[Array, "B G R C"], layout: Layout) -> Float[Array, "B h w C"]:
    """Adds what the blocks give to each cell, the transpose of `seen_by_blocks`."""
    batch, _, _, channels = contributions.shape
    (v, u), (m, n), (rows, columns) = layout.count, layout.sides, layout.grid
    contributions = contributions.reshape(batch, v, u, m + 2, n + 2, channels)
    contributions = contributions.transpose(0, 1, 3, 2, 4, 5)  # [B, v, m+2, u, n+2, C]
    return _add_windows(_add_windows(contributions, 3), 1)[:, :rows, :columns]


def _windows(padded: Array, axis: int, size: int) -> Array:
    """Cuts an axis of blocks * size + 2 entries into windows that overlap by two: [blocks, size + 2] instead."""
    shape = (*padded.shape[:axis], (padded.shape[axis] - 2) // size, size, *padded.shape[axis + 1 :])
    before, own, after = (
        jax.lax.slice_in_dim(padded, start, padded.shape[axis] - 2 + start, axis=axis).reshape(shape)
        for start in range(3)
    )
    first = jax.lax.slice_in_dim(before, 0, 1, axis=axis + 1)
    last = jax.lax.slice_in_dim(after, size - 1, size, axis=axis + 1)
    return jnp.concatenate([first, own, last], axis=axis + 1)


def _add_windows(windows: Array, axis: int) -> Array:
    """The reverse of `_windows`: [blocks, size + 2] becomes blocks * size, overlaps added, the two ends dropped."""
    shape = windows.shape
    count, size = shape[axis], shape[axis + 1] - 2
    windows = windows.reshape(*shape[: axis + 2], math.prod(shape[axis + 2 :]))  # what comes after as one axis
    none = [(0, 0)] * axis
    to_previous = jnp.pad(windows[..., 1:, :1, :], (*none, (0, 1), (size - 1, 0), (0, 0)))
    to_next = jnp.pad(windows[..., :-1, -1:, :], (*none, (1, 0), (0, size - 1), (0, 0)))
    return (windows[..., 1:-1, :] + to_previous + to_next).reshape(*shape[:axis], count * size, *shape[axis + 2 :])
