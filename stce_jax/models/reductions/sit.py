"""SiT: new tokens, each a weighted sum of all image tokens, by weights that an MLP computes from each token.

Source: token slimming, Zong et al., ECCV 2022 (arXiv 2111.12624), as the comparison study of Haurum et al. 2023 codes
it.

Shape letters: B batch, n image tokens, M new ones, D model width.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import LayerNorm, linear
from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.reductions import new_tokens, reduction
from stce_jax.models.tokens import Tokens


class SiT(nn.Module):
    """Before its blocks, makes M new tokens of the image's n; 2 D + D^2 / 2 + D / 2 + M (D / 2 + 1) + 1 parameters.

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
        width, dtype = values.shape[-1], values.dtype
        count = new_tokens.made_count(self, tokens, "logits", "kernel", axis=1)
        normed = LayerNorm(dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(values)
        hidden = gelu(linear(width // 2, dtype, "hidden")(normed))
        logits = linear(count, jnp.promote_types(dtype, jnp.float32), "logits")(hidden)  # [B, n, M]
        scale = self.param("scale", nn.initializers.ones, (1,), jnp.float32)
        weights = new_tokens.shares_of_tokens(logits.transpose(0, 2, 1) * scale[0], tokens)
        return new_tokens.replace_image_tokens(self, tokens, weights, values)
