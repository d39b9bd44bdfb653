"""Image embeddings, a file each, and the table that finds them by name.

An embedding is a linen module, usable inside any model: images [B, H, W, 3] in, `Tokens` out. What a body and the
verbs ask of it:

  width, dtype                     fields: D, and the dtype of the computation; the model sets both
  __call__(images, *, train)       -> Tokens with their grid
  grid(height, width)              -> (h, w), how such an image's tokens lie, row by row, or ConfigError
  feature_places()                 -> (stride, first): pixels between two features, and the place of the first
  axis_name                        optional field, no option: as flax.linen.BatchNorm's, see `factory.create_model`
  check()                          optional: raises ConfigError if its options cannot work
  options_for(width, stride)       optional, static: {option: value} of those that follow the body: how wide its tokens
                                   are, and how many pixels lie between two of them

Every other field is an option, set by `create_model`, or in a config in the section `model.embedding.NAME`.
A new embedding is one new file here and one line in the table; one's own, outside the package, adds itself to it.
"""

from typing import Any

from stce_jax.models.embeddings.cmt import CMTEmbed
from stce_jax.models.embeddings.conv import Conv1x1Embed, ConvEmbed
from stce_jax.models.embeddings.datpp import DATPlusEmbed
from stce_jax.models.embeddings.earlyconv import EarlyConvEmbed
from stce_jax.models.embeddings.hcformer import HCFormerEmbed
from stce_jax.models.embeddings.linear_patch import LinearPatchEmbed
from stce_jax.models.embeddings.max_pool import MaxPoolConvEmbed
from stce_jax.models.embeddings.mobilevit import MobileViTEmbed
from stce_jax.models.embeddings.overlap_patch import OverlapPatchEmbed
from stce_jax.models.embeddings.patch import PatchEmbed
from stce_jax.models.embeddings.stce import SuperTokenConvEmbed
from stce_jax.models.embeddings.svit import SViTEmbed

__all__ = [
    "EMBEDDINGS",
    "CMTEmbed",
    "Conv1x1Embed",
    "ConvEmbed",
    "DATPlusEmbed",
    "EarlyConvEmbed",
    "HCFormerEmbed",
    "LinearPatchEmbed",
    "MaxPoolConvEmbed",
    "MobileViTEmbed",
    "OverlapPatchEmbed",
    "PatchEmbed",
    "SViTEmbed",
    "SuperTokenConvEmbed",
]

EMBEDDINGS: dict[str, Any] = {  # name -> linen module class
    "patch": PatchEmbed,
    "conv": ConvEmbed,
    "conv1x1": Conv1x1Embed,
    "earlyconv": EarlyConvEmbed,
    "stce": SuperTokenConvEmbed,
    "hcformer": HCFormerEmbed,
    "max_pool": MaxPoolConvEmbed,
    "svit": SViTEmbed,
    "linear_patch": LinearPatchEmbed,
    "overlap_patch": OverlapPatchEmbed,
    "cmt": CMTEmbed,
    "mobilevit": MobileViTEmbed,
    "datpp": DATPlusEmbed,
}
