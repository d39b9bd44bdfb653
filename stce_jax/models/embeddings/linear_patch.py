"""The plain patch embedding of ViT, DeiT, Swin and others: one linear layer, no norm.

Shape letters: B batch, H W image height and width, N tokens, D model width, P side of a patch.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.conv_layers import uniform_initializers
from stce_jax.models.embeddings.patch import PatchEmbed
from stce_jax.models.layers import linear
from stce_jax.models.ops.patches import cut_patches
from stce_jax.models.tokens import Tokens


class LinearPatchEmbed(PatchEmbed):
    """Patches -> linear: a convolution whose kernel is as large as its stride, as a product.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929. The kernel [3 P P, D] is that of the convolution, [P, P, 3, D].
    Options and fields are those of `PatchEmbed`; initialised as PyTorch's convolutions are.
    """

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        del train  # nothing here differs between training and inference
        grid = self.grid(*images.shape[1:3])
        patches = cut_patches(images, self.patch_size)
        values = linear(self.width, self.dtype, "projection", **uniform_initializers(patches.shape[-1]))(patches)
        return Tokens(values, grid=grid)
