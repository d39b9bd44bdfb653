"""Deformable attention: all places attend to a few, which lie where the places themselves say.

Source: Xia et al. 2022, "Vision Transformer with Deformable Attention", arXiv 2201.00520, and its published code in two
versions, that of the paper (DAT) and that of Xia et al. 2023, "DAT++", arXiv 2309.01430.

Shape letters: B batch, H W feature height and width, C channels, G groups of channels, g = C / G, h w rows and columns
of samples, S = h w samples, A heads, E width of a head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.conv_layers import uniform_initializers
from stce_jax.models.layers import LayerNorm, linear
from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.attention import dot_product_attention, fused_kernel
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.precision import of_rank, widened
from stce_jax.models.ops.sampling import sample_bilinear, sample_differences
from stce_jax.platform.backends import by_backend

Pair = tuple[int, int]


class StridedDepthwise(nn.Module):
    """A convolution of each channel by itself, [B, H, W, C] -> [B, h, w, C].

    Padded by half of the kernel; not at all where the kernel is as long as the stride, as in DAT++'s code.

    Attributes:
      kernel: side of the kernel.
      stride: in both directions.
      dtype: dtype of the computation; parameters are float32.
    """

    kernel: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        channels, side = inputs.shape[-1], self.kernel
        initializers = uniform_initializers(side**2)
        kernel = self.param("kernel", initializers["kernel_init"], (side, side, 1, channels), jnp.float32)
        bias = self.param("bias", initializers["bias_init"], (channels,), jnp.float32)
        inputs, kernel, bias = (array.astype(self.dtype) for array in (inputs, kernel, bias))
        margin = _margin(side, self.stride)
        # XLA for CPUs computes convolutions of single channels one by one: see `ops.convolution`.
        by_slices = functools.partial(_by_slices, stride=self.stride, margin=margin)
        convolution = functools.partial(_convolution, stride=self.stride, margin=margin)
        outputs = by_backend(inputs, kernel, cpu=by_slices, default=convolution)
        return outputs + of_rank(4, bias)


def _margin(kernel: int, stride: int) -> int:
    return kernel // 2 if kernel != stride else 0


def _convolution(inputs: Array, kernel: Array, *, stride: int, margin: int) -> Array:
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        (stride, stride),
        ((margin, margin), (margin, margin)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=inputs.shape[-1],
    )


def _by_slices(inputs: Array, kernel: Array, *, stride: int, margin: int) -> Array:
    side = kernel.shape[0]
    padded = jnp.pad(inputs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows, columns = ((length - side) // stride + 1 for length in padded.shape[1:3])
    reach = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    products = (
        widened(padded[:, down : down + reach[0] : stride, right : right + reach[1] : stride])
        * widened(kernel[down : down + 1, right : right + 1])
        for down in range(side)
        for right in range(side)
    )
    return functools.reduce(jnp.add, products).astype(inputs.dtype)


def sampled_grid(rows: int, columns: int, kernel: int, stride: int) -> Pair:
    """How many (rows, columns) of samples `DeformableAttention` takes of a map."""
    margin = _margin(kernel, stride)
    return (rows + 2 * margin - kernel) // stride + 1, (columns + 2 * margin - kernel) // stride + 1


class DeformableAttention(nn.Module):
    """Multi-head attention of all places to samples of the map, [B, H, W, C] -> [B, H, W, C].

    A small network makes, of the queries of each group of channels, how far each of a grid of h x w samples lies from
    its place in the grid; keys and values are made of what the map has there, between places by bilinear interpolation.
    A table gives a bias for where a sample lies from a query, interpolated, too: so it works for maps of any size, but
    is as large as the map that it is made for. Sows the positions of samples [B, G, h, w, 2] as "positions", (y, x),
    where -1 is the map's first row or column and 1 the last.

    Attributes:
      heads: number of heads; must divide C.
      groups: G; must divide the heads.
      size: (rows, columns) of the map that the table is made for.
      kernel, stride: of the convolution that makes the grid of samples.
      offset_range: how far a sample may lie from its place in the grid, in steps of it; 0 (-1 in the published code):
        anywhere.
      corners: DAT++'s positions, and else DAT's, see `positions`.
      dtype: dtype of the computation; parameters and positions are float32.
    """

    heads: int
    groups: int
    size: Pair
    kernel: int
    stride: int = 1
    offset_range: float = 2.0
    corners: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = features.shape
        groups, wide = self.groups, channels // self.groups
        query = self._linear(features.reshape(-1, channels), channels, "query")
        grouped = _to_groups(query.reshape(features.shape), groups)  # [B G, H, W, g]
        positions = self.positions(self._offsets(grouped))  # [B G, h, w, 2]
        rows, columns = positions.shape[1:3]
        self.sow("intermediates", "positions", positions.reshape(batch, groups, rows, columns, 2))
        count = rows * columns  # S
        positions = positions.reshape(batch * groups, count, 2)
        with jax.named_scope("sampling"):
            samples = sample_bilinear(_to_groups(features, groups), positions)  # [B G, S, g]
            bias = self._bias(positions.reshape(batch, groups, count, 2), (height, width))
        samples = samples.reshape(batch, groups, count, wide).transpose(0, 2, 1, 3).reshape(-1, channels)  # [B S, C]
        heads = (self.heads, channels // self.heads)
        query = query.reshape(batch, height * width, *heads)
        key, value = (self._linear(samples, channels, name).reshape(batch, count, *heads) for name in ("key", "value"))
        # By products on every device: cuDNN's kernel has no gradient of a bias for each image.
        with fused_kernel(False):
            outputs = dot_product_attention(query, key, value, bias=bias)  # [B, H W, A, E]
        return self._linear(outputs.reshape(-1, channels), channels, "out").reshape(features.shape)

    def positions(self, offsets: Float[Array, "B h w 2"]) -> Float[Array, "B h w 2"]:
        """Where samples lie, (y, x), of what the network gives.

        DAT's grid lies at the middles of h x w equal parts of the map. With `corners` everything is as if there were
        h - 1 and w - 1 parts, as in DAT++'s code, so that the last row and column of the grid lie beyond the map; there
        positions without an `offset_range` are cut off at the map's border, where DAT takes their tanh.
        """
        offsets = widened(offsets)
        counts = np.array(offsets.shape[1:3]) - int(self.corners)
        if self.offset_range:
            # The authors' steps are float32 also where everything else is float64.
            steps = (1.0 / counts).astype(np.float32)[None, None, None]
            offsets = jnp.tanh(offsets) * steps.astype(offsets.dtype) * self.offset_range
        axes = [(np.arange(side) + 0.5) / count * 2 - 1 for side, count in zip(offsets.shape[1:3], counts, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)[None]  # [1, h, w, 2]
        positions = offsets + grid.astype(offsets.dtype)
        if self.offset_range:
            return positions
        return jnp.clip(positions, -1.0, 1.0) if self.corners else jnp.tanh(positions)

    def _offsets(self, query: Float[Array, "B H W g"]) -> Float[Array, "B h w 2"]:
        outputs = StridedDepthwise(self.kernel, self.stride, self.dtype, name="offset_depthwise")(query)
        outputs = gelu(LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="offset_norm")(outputs))
        rows = outputs.reshape(-1, outputs.shape[-1])
        return self._linear(rows, 2, "offset", bias=False).reshape(*outputs.shape[:3], 2)

    def _bias(self, positions: Float[Array, "B G S 2"], size: Pair) -> Float[Array, "B A N S"]:
        """The bias of each of a map's places, N = H W, and each sample, from the group's tables."""
        batch, groups, samples, _ = positions.shape
        shape = (self.heads, 2 * self.size[0] - 1, 2 * self.size[1] - 1)
        table = self.param("bias_table", nn.initializers.truncated_normal(0.01, -200.0, 200.0), shape, jnp.float32)
        table = table.reshape(groups, self.heads // groups, *shape[1:])  # a group's heads lie side by side
        if self.corners:
            down, right = (np.arange(side) / (side - 1) * 2 - 1 for side in size)
        else:
            down, right = ((np.arange(side) + 0.5) / side * 2 - 1 for side in size)
        biases = sample_differences(table, down, right, positions)  # [B, G, A / G, H, W, S]
        return biases.reshape(batch, self.heads, size[0] * size[1], samples)

    def _linear(self, rows: Array, features: int, name: str, *, bias: bool = True) -> Array:
        options: dict[str, Any] = uniform_initializers(rows.shape[-1])
        return linear(features, self.dtype, name, use_bias=bias, **options)(rows)


def _to_groups(features: Float[Array, "B H W C"], groups: int) -> Float[Array, "BG H W g"]:
    """A map for each group of channels, an image's groups side by side."""
    batch, height, width, channels = features.shape
    grouped = features.reshape(batch, height, width, groups, channels // groups).transpose(0, 3, 1, 2, 4)
    return grouped.reshape(batch * groups, height, width, channels // groups)
