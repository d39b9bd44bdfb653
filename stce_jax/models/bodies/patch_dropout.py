"""Patch dropout: in training each image goes through the blocks with a part of its tokens alone.

Source: Liu et al. 2023, "PatchDropout: Economizing Vision Transformers Using Patch Dropout", arXiv 2208.07220, and
timm's module of that name.

Shape letters: B batch, n image tokens, M of them kept.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from stce_jax.models.layers import is_training
from stce_jax.models.tokens import Tokens


class PatchDropout(nn.Module):
    """Leaves the leading tokens and M image tokens, drawn for each image by itself, in their order.

    The others are not computed. All keep what they have, so positions are added before. In evaluation all stay.

    Attributes:
      rate: share of the image tokens that is dropped, 0 <= rate < 1.

    The draw has the rng "dropout" and this module's name, so that it moves no other draw.
    """

    rate: float

    @nn.compact
    def __call__(self, tokens: Tokens, train: bool | None = None) -> Tokens:
        count = tokens.shape[1] - tokens.leading
        kept = kept_count(self.rate, count)
        if not is_training(self, train) or kept == count:
            return tokens
        noise = jax.random.uniform(self.make_rng("dropout"), (tokens.shape[0], count))
        places = jnp.sort(jnp.argsort(noise, axis=1)[:, :kept], axis=1) + tokens.leading  # [B, M]
        leading = jnp.broadcast_to(jnp.arange(tokens.leading), (len(places), tokens.leading))
        return tokens.select(jnp.concatenate([leading, places], axis=1))


def kept_count(rate: float, count: int) -> int:
    """How many of `count` image tokens stay: 1 - rate of them, rounded down as timm does, and one at least."""
    return max(1, int(count * (1.0 - rate)))
