"""The moving average of the weights: how fast it forgets."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# The profile of a power of time that is widest: all weights so far count alike.
WIDEST_SHARE = 0.28
Decay = float | Callable[[Int[Array, ""]], Float[Array, ""]]  # a constant, or of the steps made so far


def exponent(share: float) -> float:
    """The power of time, > 0, by which weights count in an average whose profile has this width.

    Args:
      share: standard deviation of the profile, as a share of the training so far; 0 < share <= `WIDEST_SHARE`.
    """
    square = share**-2.0
    # The variance of the profile t^g on 0..1 is (g + 1) / ((g + 2)^2 (g + 3)).
    return float(np.roots([1.0, 7.0, 16.0 - square, 12.0 - square]).real.max())


def power_decay(share: float, shift: float = 0.0) -> Decay:
    """The decay of each step of an average over the latest share of the training so far.

    Weights count by a power of their time, so the horizon grows with the run, and needs neither its length nor a
    warm-up: after the first step the average is what that step made. Source: Karras et al. 2024, "Analyzing and
    improving the training dynamics of diffusion models", arXiv 2312.02696, section 3.

    Args:
      share: see `exponent`.
      shift: see `Timetable.shift`; time is counted in images.
    """
    power = exponent(share) + 1.0

    def decay(step: Int[Array, ""]) -> Float[Array, ""]:
        time = jnp.maximum(step + 1.0 - shift, 1.0)
        return jnp.exp(power * jnp.log1p(-1.0 / time))

    return decay
