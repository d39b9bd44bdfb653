"""Patch kernels of another side: timm's golden numbers, and what a pseudo-inverse must do."""

import jax
import numpy as np
from golden_files import golden

from stce_jax.models.ops.patch_kernels import resize_patch_kernel


def test_the_golden_kernel_of_timm():
    arrays = golden("bodies", "patch_embed_resample_16_to_8")
    kernel = arrays["w"].astype(np.float32).transpose(2, 3, 1, 0)  # [P, P, C, D]
    found = resize_patch_kernel(kernel, 8).transpose(3, 2, 0, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, arrays["out"], atol=1e-5 * np.abs(arrays["out"]).max())


def test_a_larger_patch_gives_the_same_token():
    """Of a patch that is enlarged, the enlarged kernel reads what the first kernel read of it."""
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(4, 4, 3, 5)), rng.normal(size=(4, 4, 3)).astype(np.float32)
    larger = np.asarray(jax.image.resize(patch, (8, 8, 3), "bicubic"))
    expected = np.einsum("yxc,yxcd->d", patch, kernel)
    found = np.einsum("yxc,yxcd->d", larger, resize_patch_kernel(kernel.astype(np.float32), 8))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    same = resize_patch_kernel(kernel.astype(np.float32), 4)
    np.testing.assert_allclose(same, kernel, atol=1e-5)
