"""HCFormer's clustering attention between two resolutions.

Source: HCFormer (Suzuki 2022, arXiv 2205.09949) and its published code.

Shape letters: B batch, H W height and width of the fine map, h w of the coarse one, F and C their channels.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import LayerNorm, linear
from stce_jax.models.ops.clustering import cluster_locally
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.supertoken import Cell, SuperTokenAssociation

INITIAL_TEMPERATURE = 0.1
xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


class ClusteringAttention(nn.Module):
    """Compares a fine map with a coarse one: LayerNorm and a linear layer without bias of each, then `cluster_locally`.

    `module(fine, coarse).scatter(signal)` carries a coarse signal up to the fine map.

    Attributes:
      width: in which places are compared; 128 in the published code.
      cell: size of a coarse place in pixels of the fine map, an int or (rows, columns).
      dtype: dtype of norms and linear layers; assignments are computed in float32 at least. Parameters are float32.
    """

    width: int = 128
    cell: Cell = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fine: Float[Array, "B H W F"], coarse: Float[Array, "B h w C"]) -> SuperTokenAssociation:
        compared = []
        for name, features in (("fine", fine), ("coarse", coarse)):
            normed = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name=f"{name}_norm")(features)
            layer = linear(self.width, self.dtype, f"{name}_embedding", use_bias=False, kernel_init=xavier_normal)
            rows = layer(normed.reshape(-1, features.shape[-1]))
            compared.append(rows.reshape(*features.shape[:3], self.width))
        initial = nn.initializers.constant(INITIAL_TEMPERATURE)
        temperature = self.param("temperature", initial, (), jnp.float32)
        return cluster_locally(compared[0], compared[1], temperature, self.cell)
