"""Local clustering between two resolutions: which of the coarser places around it each pixel belongs to.

Source: HCFormer (Suzuki 2022, arXiv 2205.09949) and its published code.

Shape letters: B batch, H W height and width of the fine map, h w of the coarse one, E width in which places are
compared, C channels.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stce_jax.models.ops.precision import of_rank, widened
from stce_jax.models.ops.supertoken import Cell, SuperTokenAssociation, associate

NORM_EPSILON = 1e-12
TEMPERATURE_EPSILON = 1e-8


def cluster_locally(
    fine: Float[Array, "B H W E"], coarse: Float[Array, "B h w E"], temperature: Float[Array, ""], cell: Cell = 2
) -> SuperTokenAssociation:
    """Assigns each pixel to the 3x3 coarse places around its own, softmax_k(cos(fine_p, coarse_k) / abs(temperature)).

    Places beyond the border are left out. (The published code takes a cosine of exactly 0 for one of them; here such a
    place inside the grid counts.) Gradients flow to all three. Computed in float32 at least.

    Args:
      fine: the finer map.
      coarse: the coarser one, a place for each cell of the finer.
      temperature: a number; 1e-8 is added to its magnitude.
      cell: size of a cell in pixels of the finer map, an int or (rows, columns); 2 in the published code.

    Returns:
      The assignment: `affinity()` has the nine numbers of each pixel, `scatter(signal)` carries a coarse signal
      [B, h, w, C] up to the pixels (HCFormer's upsampling), and `cluster_means` averages pixels.
    """
    chex.assert_equal_shape([fine, coarse], dims=(0, 3))
    fine, coarse = _unit(fine), _unit(coarse)
    # The affinities' logits are inner products over sqrt(E).
    sharpness = np.sqrt(fine.shape[-1]).item() / (jnp.abs(widened(temperature)) + TEMPERATURE_EPSILON)
    fine = fine * of_rank(4, sharpness.astype(fine.dtype))
    return associate(fine, cell, 1, border="mask", initial=coarse, differentiable=True)


def cluster_means(assignment: SuperTokenAssociation, values: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """The mean of the pixels of each cluster, weighted by assignment: sum_p A_pk F_p / sum_p A_pk over real pixels.

    Not part of HCFormer, whose code uses the assignment to carry predictions up alone.
    """
    means = assignment.aggregate(values)
    rows, columns = assignment.size
    if (rows % assignment.layout.cell[0], columns % assignment.layout.cell[1]) == (0, 0):
        return means
    shares = assignment.aggregate(jnp.ones((*values.shape[:3], 1), means.dtype))  # below 1 where zeros were padded
    return means / (shares + NORM_EPSILON)


def _unit(vectors: Float[Array, "B H W E"]) -> Float[Array, "B H W E"]:
    """Of length one; zeros stay."""
    vectors = widened(vectors)
    squares = jnp.square(vectors).sum(axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, NORM_EPSILON**2))
