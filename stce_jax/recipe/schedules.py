"""Learning rate schedules: a warm-up in a straight line, what follows it up to the last step, and restarts of that.

All are given in steps that follow from epochs, so they keep their place when a run continues with another batch size.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from stce_jax.errors import ConfigError, check_choice, check_range, shown

# Of the default's rest of a run that cools down. Hägele et al. 2024: 10 to 20% suffice for the loss of a cosine.
DECAY_SHARE = 0.2
MOST_RESTARTS = 100


def cosine(*, peak: float, final: float, warmup_steps: int, total_steps: int, decay_share: float) -> optax.Schedule:
    """Half a cosine from the peak to `final` (Loshchilov and Hutter 2017), as in DeiT."""
    del decay_share
    return optax.cosine_decay_schedule(peak, total_steps - warmup_steps, final / peak if peak else 0.0)


def linear(*, peak: float, final: float, warmup_steps: int, total_steps: int, decay_share: float) -> optax.Schedule:
    """A straight line from the peak to `final`. Defazio et al. 2023, "When, why and how much?", arXiv 2310.07831."""
    del decay_share

    def rate(step: Any) -> Any:
        return peak + (final - peak) * _progress(step, 0.0, total_steps - warmup_steps)

    return rate


def wsd(*, peak: float, final: float, warmup_steps: int, total_steps: int, decay_share: float) -> optax.Schedule:
    """The peak, and in the last `decay_share` of the run 1 - sqrt(progress) down to `final`: warm-up, stable, decay.

    Source: Hu et al. 2024, "MiniCPM", arXiv 2404.06395; the form of the decay is that of Hägele et al. 2024, "Scaling
    laws and compute-optimal training beyond fixed training durations", arXiv 2405.18392. Up to the decay the rate does
    not depend on the run's length.
    """
    length = total_steps - warmup_steps
    start = max(0.0, length - decay_share * total_steps)

    def rate(step: Any) -> Any:
        return peak + (final - peak) * jnp.sqrt(_progress(step, start, length))

    return rate


def constant(*, peak: float, final: float, warmup_steps: int, total_steps: int, decay_share: float) -> optax.Schedule:
    """The peak to the end, for optimizers that average the weights instead; `final` plays no part."""
    del final, warmup_steps, total_steps, decay_share
    return lambda step: peak + 0.0 * step


# Name -> function (*, peak, final, warmup_steps, total_steps, decay_share) of steps after the warm-up -> learning rate.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "constant": constant,
}


def make_schedule(
    *,
    peak: float,
    warmup_from: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    shift: float = 0.0,
    name: str = "cosine",
    decay_share: float = DECAY_SHARE,
    restart_steps: Sequence[int] = (),
    restart: float = 0.0,
) -> optax.Schedule:
    """Step -> learning rate: linear from `warmup_from` to `peak` in `warmup_steps`, then the schedule of that name.

    Args:
      peak, warmup_from, final: learning rates, >= 0.
      warmup_steps, total_steps: >= 0; a run shorter than its warm-up only warms up.
      shift: all of it comes that many steps later; below 0, earlier. See `Timetable.shift`.
      name: a key of `SCHEDULES`.
      decay_share: of "wsd", the share of all steps, or of those between two restarts, in which the rate falls, 0 <
        share <= 1.
      restart_steps: rising, after the warm-up and below `total_steps`. Each ends the schedule before it, and begins
        one of the same name from `restart`, which ends with the next.
      restart: learning rate, >= 0; 0: the peak.
    """
    options: dict[str, Any] = {"final": final, "decay_share": decay_share}
    first = restart_steps[0] if restart_steps else total_steps
    parts = [
        optax.linear_schedule(warmup_from, peak, warmup_steps),
        SCHEDULES[name](peak=peak, warmup_steps=warmup_steps, total_steps=max(first, warmup_steps + 1), **options),
    ]
    for begin, end in itertools.pairwise([*restart_steps, total_steps]):
        parts.append(SCHEDULES[name](peak=restart or peak, warmup_steps=0, total_steps=max(end - begin, 1), **options))
    schedule = optax.join_schedules(parts, [warmup_steps, *restart_steps])
    return (lambda step: schedule(step - shift)) if shift else schedule


def check_options(*, name: str, decay_share: float, restart_epochs: Any) -> None:
    """Raises ConfigError if the options of a schedule cannot work."""
    check_choice("config.optimizer.schedule", name, tuple(SCHEDULES))
    check_range("config.optimizer.decay_share", decay_share, 0, 1, above=True)
    option, epochs = (
        "config.optimizer.restart_epochs",
        restart_epochs if isinstance(restart_epochs, tuple | list) else [0],
    )
    real = all(isinstance(epoch, int | float) and not isinstance(epoch, bool) for epoch in epochs)
    if len(epochs) > MOST_RESTARTS or not real or not all(0 < epoch <= 1_000_000 for epoch in epochs):
        raise ConfigError(
            f"{option} is {shown(restart_epochs)}; it must be at most {MOST_RESTARTS} epochs above 0, or ()"
        )
    if any(first >= second for first, second in itertools.pairwise(epochs)):
        raise ConfigError(f"{option} is {shown(restart_epochs)}; its epochs must rise")
    if epochs and name == "constant":
        raise ConfigError(
            f"{option} is {shown(restart_epochs)}, and the schedule is constant, which never falls; give ()"
        )


def check_restarts(restart_epochs: Sequence[float], *, warmup_epochs: float, epochs: float) -> None:
    """Raises ConfigError unless a schedule's restarts, which `check_options` takes, fit into a run."""
    if restart_epochs and not (warmup_epochs < restart_epochs[0] and restart_epochs[-1] < epochs):
        raise ConfigError(
            f"config.optimizer.restart_epochs is {shown(tuple(restart_epochs))}; they must lie between the warm-up's "
            f"end, {warmup_epochs:g}, and config.epochs, {epochs:g}; give more --config.epochs, or ()"
        )


def _progress(step: Any, start: float, end: float) -> Any:
    """0 up to the step `start`, 1 from `end` on, a straight line between."""
    return jnp.clip((step - start) / (end - start), 0.0, 1.0)
