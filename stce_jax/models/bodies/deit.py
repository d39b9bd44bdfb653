"""DeiT, the plain vision transformer as it was trained on ImageNet alone, with a distillation token or without.

Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention", arXiv
2012.12877, and timm's code of it (`deit_*_patch16_224`, `deit_*_distilled_patch16_224`).

Shape letters: B batch, D model width.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError
from stce_jax.models.bodies.vit import VisionTransformer
from stce_jax.models.layers import linear, truncated_normal
from stce_jax.models.tokens import Tokens

_TI = {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 768, "drop_path": 0.1}
_S = {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536, "drop_path": 0.1}
_B = {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072, "drop_path": 0.1}


class DeiT(VisionTransformer):
    """`VisionTransformer` with DeiT's sizes, whose MLPs are four times as wide as the model, and its two tokens.

    Distilled, a second learned token lies behind the class token, with a head of its own. The logits are the mean of
    both heads', in training, too: in DeiT's own the second head learns from a teacher, of which there is none here.
    The features are the mean of both tokens, as timm's.

    Beside the attributes of `VisionTransformer`:

    Attributes:
      distilled: whether there is a distillation token; needs pooling "class".
    """

    mlp_dim: int = 1536
    distilled: bool = False

    EMBEDDING: ClassVar[str] = "linear_patch"
    # Each with the drop path that it was trained with on ImageNet at 224 pixels.
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "ti": _TI,
        "s": _S,
        "b": _B,
        "ti_distilled": {**_TI, "distilled": True},
        "s_distilled": {**_S, "distilled": True},
        "b_distilled": {**_B, "distilled": True},
    }

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        super().check()
        if self.distilled and self.pooling != "class":
            raise ConfigError(f"a distilled model reads its two tokens, not their {self.pooling}; give pooling=class")

    def setup(self) -> None:
        super().setup()
        if self.distilled:
            shape = (1, 1, self.width)
            self.distillation_token = self.param("distillation_token", truncated_normal, shape, jnp.float32)
            if self.num_classes:
                self.distillation_head = linear(self.num_classes, self.dtype)

    @property
    def heads_read(self) -> int:
        return super().heads_read + self.distilled

    def leading_tokens(self) -> Float[Array, "1 n D"]:
        if not self.distilled:
            return super().leading_tokens()
        return jnp.concatenate([self.class_token, self.distillation_token], axis=1)

    def pool(self, tokens: Tokens) -> Float[Array, "B D"]:
        """What a single head would read: of a distilled model the mean of both tokens."""
        return tokens.values[:, :2].mean(axis=1) if self.distilled else super().pool(tokens)

    def logits(self, tokens: Tokens) -> Float[Array, "B classes"]:
        """What the heads make of the tokens; only where there are classes."""
        if not self.distilled:
            return super().logits(tokens)
        return (self.head(tokens.values[:, 0]) + self.distillation_head(tokens.values[:, 1])) / 2
