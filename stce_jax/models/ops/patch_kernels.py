"""Kernels of patch embeddings, brought to another side of the patches.

Shape letters: P side of a patch, Q its new side, C channels, D model width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def resize_patch_kernel(kernel: Float[np.ndarray, "P P C D"], side: int) -> Float[np.ndarray, "Q Q C D"]:
    """FlexiViT's pseudo-inverse resize: a resized patch gives, as nearly as can be, the token that it gave before.

    Source: Beyer et al. 2023, arXiv 2212.08013, section 3.4; `resample_patch_embed` of timm. With the matrix B that
    resizes an image (bicubic, antialiased), the kernel w becomes the least-squares solution of B^T w_new = w. B acts on
    rows and columns alike, so its pseudo-inverse is that of one line, twice.

    Args:
      kernel: of square patches.
      side: Q >= 1.

    Returns:
      float32.
    """
    old = kernel.shape[0]
    resize = jax.image.resize(jnp.eye(old, dtype=jnp.float32), (side, old), "bicubic")  # [Q, P], of one line
    inverse = np.linalg.pinv(np.asarray(resize, np.float64).T)  # [Q, P]
    resized = np.einsum("Yy,Xx,yxcd->YXcd", inverse, inverse, kernel.astype(np.float64), optimize=True)
    return resized.astype(np.float32)
