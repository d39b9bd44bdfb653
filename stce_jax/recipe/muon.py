"""Muon: momentum whose matrices are made orthogonal. Which parameters are matrices, and how large an update is.

Sources: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks", and its code, for the update and for
what is a matrix; Liu et al. 2025, "Muon is scalable for LLM training", arXiv 2502.16982, for the size of updates.

Shape letters: L stacked layers, I inputs and O outputs of a matrix, P matrices side by side.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax import contrib

# An orthogonal matrix times this and the root of its longer side has AdamW's usual root mean square (Liu et al. 2025):
# one learning rate and one weight decay serve both.
UPDATE_RMS = 0.2
# Matrices that lie side by side in one kernel are made orthogonal each by itself, as Jordan found better for query, key
# and value. Name of the layer -> how many.
FUSED = {"qkv": 3}
Split = tuple[int, int, int, int]  # L, I, P, O, such that kernel.reshape(L, I, P, O)[l, :, p] is one matrix
Matrices = Callable[[tuple[str, ...], tuple[int, ...]], Split | None]


def hidden_matrices(
    path: tuple[str, ...], shape: tuple[int, ...], *, fused: Mapping[str, int] | None = None
) -> Split | None:
    """How a parameter is cut into matrices; None for what AdamW trains.

    Matrices are the kernels between the embedding and the head: of linear layers; of linear layers with axes for heads;
    of convolutions, whose rows and columns count as inputs (Jordan's code). None are the embedding, the heads, biases,
    norms, tokens, positions, and kernels of depthwise convolutions and of a single output, where nothing is mixed.

    Args:
      path: names from the root of the parameters to the leaf. Under "blocks" all blocks are stacked on the first axis.
      shape: of the leaf.
      fused: instead of `FUSED`.
    """
    if path[-1] != "kernel" or path[0] == "embedding" or "head" in path[0].split("_"):
        return None
    layer = path[-2] if len(path) > 1 else ""
    layers, axes = (shape[0], shape[1:]) if path[0] == "blocks" else (1, shape)
    if len(axes) == 2:
        rows, columns = axes
    elif len(axes) == 3:  # of flax's attention: [I, heads, O / heads], or, behind it, [heads, I / heads, O]
        cut = 2 if layer == "out" else 1
        rows, columns = math.prod(axes[:cut]), math.prod(axes[cut:])
    elif len(axes) == 4 and axes[2] > 1:
        rows, columns = math.prod(axes[:3]), axes[3]
    else:
        return None
    parts = (FUSED if fused is None else fused).get(layer, 1)
    if columns % parts:
        parts = 1
    return (layers, rows, parts, columns // parts) if min(rows, columns // parts) > 1 else None


def scale_by_muon(matrices: Matrices, *, momentum: float) -> optax.GradientTransformation:
    """Nesterov momentum, five steps of Newton-Schulz for each matrix, times 0.2 sqrt(max(I, O)).

    The state keeps one array for each parameter, of its shape: it is split over devices as the parameter is, and stays
    what it is where matrices are cut in another way.

    Args:
      matrices: gives every parameter's cut; none is None.
      momentum: 0 <= momentum < 1.
    """
    # [L, I, P, O]: the other axes are those of independent matrices.
    axes = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=3)
    inner = contrib.scale_by_muon(
        beta=momentum, weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: axes, tree)
    )

    def cut(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.reshape(matrices(tuple(key.key for key in path), leaf.shape)), tree
        )

    def put_together(tree: Any, like: Any) -> Any:
        return jax.tree.map(lambda leaf, whole: leaf.reshape(whole.shape), tree, like)

    def scaled(change: jax.Array) -> jax.Array:
        _, rows, _, columns = change.shape
        return UPDATE_RMS * math.sqrt(max(rows, columns)) * change

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        changes, new = inner.update(cut(gradients), state._replace(mu=cut(state.mu)))
        new = new._replace(mu=put_together(new.mu, state.mu))
        return put_together(jax.tree.map(scaled, changes), gradients), new

    return optax.GradientTransformation(inner.init, update)
