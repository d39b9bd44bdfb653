"""The paper's narrow stack with max pooling in the clustering's place: a control, which the paper leaves out.

Average pooling in that place is `stce` with iterations=0, a strided convolution one more module and cells of 1.

Shape letters: B batch, H W image or feature height and width, C channels, h w grid, N tokens, D model width.
"""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.embeddings.stem import check_stem, conv_stack, narrow_stem, stem_places, strided_grid
from stce_jax.models.layers import linear
from stce_jax.models.ops.supertoken import cell_shape, grid_shape
from stce_jax.models.tokens import Tokens


def larger(first: Float[Array, "*shape"], second: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The larger of each two numbers, or what is no number. The gradient goes to it alone, of equal ones to the first.

    JAX shares the gradient of a maximum among the entries that equal it. XLA may compute them once for the maximum and
    again for the comparison, with other rounding: then none is equal, and it divides by their number, 0.
    """
    return jnp.where((second > first) | (second != second), second, first)


class MaxPoolConvEmbed(nn.Module):
    """A narrow stack of convolution modules, the maximum of each cell, one linear layer.

    It has the parameters of `SuperTokenConvEmbed`, by the same names. A cell that reaches beyond the map is the maximum
    of what lies in the map.

    Attributes:
      width: D.
      stem_widths, stem_strides: channels and stride of each convolution module; empty for none.
      cell: cell size in pixels of the stack's output, an int or (rows, columns).
      dtype: dtype of the computation; parameters and BatchNorm's statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      remat: recompute each module in the backward pass, as a body's option says; `create_model` sets it.
    """

    width: int = 384
    stem_widths: Sequence[int] = (16, 32, 32, 64, 64, 64)
    stem_strides: Sequence[int] = (2, 1, 2, 1, 2, 1)
    cell: int | tuple[int, int] = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None
    remat: bool = False

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        del width
        return narrow_stem(stride)  # cells of 2 halve once more

    def check(self) -> None:
        cell_shape(self.cell)
        check_stem(self.stem_widths, self.stem_strides)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return grid_shape(*strided_grid(height, width, self.stem_strides), self.cell)

    def feature_places(self) -> tuple[int, float]:
        return stem_places(self.stem_strides)

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        chex.assert_rank(images, 4)
        self.check()
        features = conv_stack(self, images, train)
        (cell_rows, cell_columns), (batch, height, width, channels) = cell_shape(self.cell), features.shape
        rows, columns = grid_shape(height, width, self.cell)
        beyond = ((0, 0), (0, rows * cell_rows - height), (0, columns * cell_columns - width), (0, 0))
        # As cells and not as windows, which ONNX does not have with the channels last.
        cells = jnp.pad(features, beyond, constant_values=-jnp.inf)
        cells = cells.reshape(batch, rows, cell_rows, columns, cell_columns, channels)
        places = [cells[:, :, row, :, column] for row in range(cell_rows) for column in range(cell_columns)]
        values = functools.reduce(larger, places).reshape(batch, rows * columns, channels)  # [B, N, C]
        return Tokens(linear(self.width, self.dtype, "projection")(values), grid=(rows, columns))
