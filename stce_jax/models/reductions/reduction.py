"""What token reductions share: keep rates, and what they leave for the log, the loss and the pictures.

Shape letters: B batch, n image tokens, M of them kept.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from stce_jax.errors import ConfigError, check_range, shown
from stce_jax.models.layers import sow_scalar as sow_scalar  # what a reduction may leave, see the package
from stce_jax.models.tokens import Tokens

KeepRate = float | Sequence[float]


def several(option: Any) -> tuple[Any, ...]:
    """An option that may be one number or several of them, as a tuple."""
    return tuple(option) if isinstance(option, list | tuple) else (option,)


def check_keep_rate(keep_rate: KeepRate, blocks: Sequence[int] | None) -> None:
    """Raises ConfigError unless all rates are in 0 < rate <= 1, and several are one for each of `blocks`."""
    rates = several(keep_rate)
    for rate in rates or (None,):
        check_range("model option keep_rate", rate, 0, 1, above=True)
    if len(rates) > 1 and blocks is not None and len(rates) != len(blocks):
        raise ConfigError(
            f"keep_rate lists {len(rates)} rates for {len(blocks)} blocks; give one a block, or a number r: stage s "
            "then keeps r^(s + 1)"
        )


def rates(keep_rate: KeepRate, stages: int) -> list[float]:
    """The rate of each of the first stages: several as they are given, one for all of them."""
    given = list(several(keep_rate))
    if 1 < len(given) < stages:
        raise ConfigError(f"keep_rate lists {len(given)} rates for {stages} blocks; give one a block, or one for all")
    return given * stages if len(given) == 1 else given[:stages]


def shares(keep_rate: KeepRate, stages: int) -> list[float]:
    """What share of the first tokens each stage aims at: r^(s + 1), or several as they are given."""
    given = rates(keep_rate, stages)
    if len(several(keep_rate)) > 1:
        return given
    return [rate ** (stage + 1) for stage, rate in enumerate(given)]


def kept_counts(keep_rate: KeepRate, initial: int, stages: int) -> list[int]:
    """How many image tokens each stage keeps, as the comparison study of Haurum et al. (2023) counts them.

    Args:
      keep_rate: r, of which stage s = 0, 1, ... keeps floor(r^(s + 1) * initial); or several, each stage's share of
        `initial`. A config and a command line give one as (r,), too.
      initial: image tokens before the first stage.
      stages: number of reducing blocks.

    Raises:
      ConfigError: a stage would keep none.
    """
    counts = [int(share * initial) for share in shares(keep_rate, stages)]
    if 0 in counts:
        raise ConfigError(
            f"keep_rate {shown(keep_rate)} leaves none of {initial} tokens at stage {counts.index(0) + 1} of "
            f"{stages}; give a larger rate, or fewer blocks"
        )
    return counts


def check_unmasked(tokens: Tokens, method: str) -> None:
    """Raises ConfigError if some tokens are masked, for methods that cannot leave them out."""
    if tokens.mask is not None:
        raise ConfigError(f"{method} cannot leave out masked tokens, which the embedding gives; choose another of them")


def sow_assignment(module: nn.Module, assignment: Int[Array, "B n"]) -> None:
    """Leaves for pictures which image token after the reduction each one before it went to; -1: it was dropped."""
    if module.is_mutable_collection("intermediates"):
        module.sow("intermediates", "assignment", jnp.asarray(assignment, jnp.int32))


def assignment_of(kept: Int[Array, "B M"], count: int) -> Int[Array, "B n"]:
    """The assignment of tokens that are kept or dropped, from the places of those that are kept."""
    assignment = jnp.full((kept.shape[0], count), -1, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(kept.shape[1], dtype=jnp.int32), kept.shape)
    return jax.vmap(lambda row, own, place: row.at[own].set(place))(assignment, kept, places)
