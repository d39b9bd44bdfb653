"""A run that goes on by another config: its timetable, and what that does to the learning rate.

More epochs can be had in two ways: the schedule is stretched over all of them, or it stays up to its end and starts
anew there, a warm restart (Loshchilov and Hutter 2017).
"""

from collections.abc import Mapping
from typing import Any

from stce_jax.errors import ConfigError
from stce_jax.processes.speaking import say
from stce_jax.training import assemble as runs
from stce_jax.training.optimization import build_schedule
from stce_jax.training.patience import Patience
from stce_jax.training.plan import with_keys
from stce_jax.training.timetable import Timetable
from stce_jax.workdir.score import SCORES, said

RESTARTS = "optimizer.restart_epochs"


def continued(config: Any, dataset: Any, step: int, meta: dict[str, Any]) -> Timetable:
    """The timetable by which a config continues from a checkpoint; where that differs from its own, says so.

    Args:
      config: the one to continue with.
      dataset: the images.
      step: of the checkpoint.
      meta: what it says of "config", "guard" and "origin".

    Raises:
      ConfigError: the run is beyond the config's epochs, or has begun with other weights.
    """
    own = meta["config"]
    if config.init_from and config.init_from != own["init_from"]:
        raise ConfigError(
            f"--init_from={config.init_from} is for new runs, and this one is at step {step}; give another --workdir, "
            "or leave it out"
        )
    before = runs.saved_timetable(meta, dataset)
    timetable = before.resumed(step, batch_size=config.batch_size, epochs=config.epochs, eval_every=config.eval_every)
    if timetable != before and step < timetable.total:
        applied = step - meta["guard"]["skipped_in_all"]  # skipped steps do not advance the schedule
        rate, old = (float(build_schedule(*pair)(applied)) for pair in ((config, timetable), (own, before)))
        say(
            f"continuing at epoch {timetable.epoch_after(step):.2f} of {config.epochs:g}; the learning rate there is "
            f"{rate:.3g} by this config, it was {old:.3g}",
            *_other_way(config, own, timetable, applied),
        )
    return timetable


def _other_way(config: Any, own: Any, timetable: Timetable, applied: int) -> list[str]:
    """Which of the two ways a config takes that has more epochs than the run's own, and the rate by the other one."""
    longer = config.epochs > own.epochs > config.optimizer.warmup_epochs
    if not longer or config.optimizer.schedule == "constant":
        return []
    before, here = (tuple(each.optimizer.restart_epochs) for each in (own, config))
    restarted = (*before, own.epochs)
    words = f"--config.{RESTARTS}={','.join(str(epoch).removesuffix('.0') for epoch in restarted)}"

    def rate(restarts: tuple[float, ...]) -> str:
        return f"{float(build_schedule(with_keys(config, {RESTARTS: restarts}), timetable)(applied)):.3g}"

    if here == before:
        return [
            f"the schedule is stretched over {config.epochs:g} epochs; with a warm restart at epoch {own.epochs:g}, "
            f"{words}, the rate would be {rate(restarted)}"
        ]
    if here == restarted:
        return [
            f"the schedule starts anew at epoch {own.epochs:g}; stretched over {config.epochs:g} epochs, without "
            f"{words}, the rate would be {rate(before)}"
        ]
    return []


def why_finished(step: int, total: int, final: Mapping[str, Any], patience: Patience) -> str:
    """What is said of a run of which nothing is left to do, and how to go on."""
    early = "" if step >= total else f"it stopped early, for {patience.reason()}; "
    more = "--config.patience=0, or a larger one," if early else "more --config.epochs"
    return (
        f"already finished at step {step}: {said(final, SCORES)}; {early}nothing to do; to go on, give {more} with "
        "--allow_config_change"
    )
