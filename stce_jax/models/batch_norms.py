"""BatchNorm as linen modules, with the activation before or behind it.

Shape letters: B batch, H W feature height and width, C channels.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import is_training
from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.batch_norms import (
    BATCH_NORM_EPSILON,
    batch_norm,
    batch_norm_plain,
    gelu_batch_norm,
    gelu_batch_norm_plain,
)
from stce_jax.models.ops.precision import of_rank, widened

BATCH_NORM_MOMENTUM = 0.9  # PyTorch's default; there it is the share of the new statistics, 0.1


class BatchNorm(nn.Module):
    """BatchNorm; variables are called as those of flax.linen.BatchNorm.

    PyTorch's defaults but for the running variance: here, as in flax, it is the biased batch variance, in PyTorch the
    unbiased one, larger by n / (n - 1) with n = B * H * W.

    Attributes:
      dtype: dtype of the result; parameters and statistics are float32.
      axis_name: as flax.linen.BatchNorm's: an axis of devices whose images count in the statistics, too. The gradient
        is then the one that JAX derives.
    """

    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    silu: ClassVar[bool] = False  # whether SiLU comes behind it

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool | None = None) -> Float[Array, "B H W C"]:
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,), jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, (width,), jnp.float32)
        if not is_training(self, train):
            inverse = jax.lax.rsqrt(running_variance.value + BATCH_NORM_EPSILON)
            centered = self.before(widened(inputs)) - of_rank(4, running_mean.value)
            return self.behind(centered * of_rank(4, inverse * scale) + of_rank(4, bias)).astype(self.dtype)
        # While variables are made the axis need not exist, as in flax.
        axis_name = None if self.is_initializing() else self.axis_name
        outputs, mean, variance = self.by_batch(inputs, scale, bias, axis_name)
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_variance, variance)):
                new = jax.lax.stop_gradient(new).astype(running.value.dtype)
                running.value = BATCH_NORM_MOMENTUM * running.value + (1.0 - BATCH_NORM_MOMENTUM) * new
        return outputs

    def before(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The activation before it."""
        return inputs

    def behind(self, outputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The activation behind it."""
        return nn.silu(outputs) if self.silu else outputs

    def by_batch(
        self, inputs: Float[Array, "B H W C"], scale: Float[Array, "C"], bias: Float[Array, "C"], axis_name: Any
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
        """(outputs, mean, variance) by the batch's own statistics."""
        if axis_name is None:
            return batch_norm(inputs, scale, bias, self.dtype, self.silu)
        return batch_norm_plain(inputs, scale, bias, self.dtype, self.silu, axis_name)


class BatchNormSilu(BatchNorm):
    """BatchNorm -> SiLU; everything else as in `BatchNorm`."""

    silu: ClassVar[bool] = True


class GeluBatchNorm(BatchNorm):
    """GELU -> BatchNorm; everything else as in `BatchNorm`."""

    def before(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return gelu(inputs)

    def by_batch(
        self, inputs: Float[Array, "B H W C"], scale: Float[Array, "C"], bias: Float[Array, "C"], axis_name: Any
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
        if axis_name is None:
            return gelu_batch_norm(inputs, scale, bias, self.dtype)
        return gelu_batch_norm_plain(inputs, scale, bias, self.dtype, axis_name)
