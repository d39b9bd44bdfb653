"""PatchMerger: new tokens, each what a learned query attends to among the image tokens.

Source: Renggli et al. 2022 (arXiv 2202.12015), as the comparison study of Haurum et al. 2023 codes it.

Shape letters: B batch, n image tokens, M new ones, D model width.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import LayerNorm
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.precision import wide_product
from stce_jax.models.reductions import new_tokens, reduction
from stce_jax.models.tokens import Tokens


class PatchMerger(nn.Module):
    """Before its blocks, makes M new tokens of the image's n, which LayerNorm normalises first; M D + 2 D parameters.

    The products of queries and normalised tokens are not scaled. Queries begin with a standard deviation of D^-1/2, so
    that these products begin with one of 1.

    Attributes:
      blocks: those before which it acts; DeiT-S of 12 blocks reduces before 3, 6 and 9.
      keep_rate: M as a share of the first tokens, see `reduction.kept_counts`.
      initial_tokens: how many image tokens `keep_rate` is a share of; None: as many as images have of the size that the
        model is made for. A number lets a model for larger images begin with the weights of one for smaller ones.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    initial_tokens: int | None = None
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False
    before: ClassVar[bool] = True

    def check(self) -> None:
        new_tokens.check(self)

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        return new_tokens.counts(self, grid, stages)

    @nn.compact
    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del given, train  # the same in training and inference
        values = tokens.image_values()
        width = values.shape[-1]
        count = new_tokens.made_count(self, tokens, "queries", axis=0)
        queries = self.param("queries", nn.initializers.normal(width**-0.5), (count, width), jnp.float32)
        values = LayerNorm(values.dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(values)
        weights = query_shares(queries, values, tokens)
        return new_tokens.replace_image_tokens(self, tokens, weights, values)


def query_shares(queries: Float[Array, "M D"], values: Float[Array, "B n D"], tokens: Tokens) -> Float[Array, "B M n"]:
    """Softmax over the image tokens of the products of queries and normalised values; float32 at least."""
    logits = wide_product("md,bnd->bmn", queries.astype(values.dtype), values)
    return new_tokens.shares_of_tokens(logits, tokens)
