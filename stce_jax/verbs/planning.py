"""`stce train --minutes=30`: plans a run that ends in time, of what a rehearsal on this machine takes.

See `training.plan` for the arithmetic and `training.rehearsal` for what is timed.
"""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jax

from stce_jax.analysis.costs import count_model
from stce_jax.errors import ConfigError
from stce_jax.processes.speaking import say, warn
from stce_jax.training import assemble as runs
from stce_jax.training.candidates import CANDIDATES
from stce_jax.training.pace import Pace
from stce_jax.training.plan import Costs, Plan, adopt, apply, chosen, make_plan, with_keys
from stce_jax.training.rehearsal import Clock, Timing, time_run
from stce_jax.workdir import layout


def planned(
    config: Any, workdir: str | Path, dataset: Any, passed: float, *, clock: Clock = time.monotonic
) -> tuple[Any, Pace | None]:
    """(config with the epochs that `config.minutes` leave time for, what keeps the run to them).

    A run without minutes has its own config and nothing of the kind; nor has one that is resumed, with its own epochs.

    Args:
      config: a run's; without `minutes` it is returned as it is.
      workdir: where the run is, or will be.
      dataset: see `runs.open_dataset`.
      passed: seconds of the minutes that have passed already.
      clock: seconds.

    Raises:
      ConfigError: the minutes are too few for a step, or the run has several processes.
    """
    began = clock() - passed
    if not config.minutes:
        return config, None
    if layout.is_workdir(workdir):
        return _resumed(config, layout.read_config(workdir)), None
    if jax.process_count() > 1:
        raise ConfigError("--minutes times one process, and this run has several; give --config.epochs instead")
    say(f"planning {config.minutes:g} minutes: timing this machine")
    candidates = CANDIDATES[config.plan] if config.plan and not config.init_from else ()
    options = [with_keys(config, candidate.keys) for candidate in candidates] or [config]
    timings: dict[int, Timing] = {}
    per_epoch = len(dataset.train) / config.batch_size  # which no candidate changes

    def plan(place: int, like: int | None = None) -> Plan:
        """The plan for an option, by its own timing or by that of another and their multiply-adds."""
        if like is None and place not in timings:
            timings[place] = time_run(options[place], dataset, clock=clock)
            say(_in_words(options[place], timings[place]))
        costs = timings[place if like is None else like].costs
        if like is not None and like != place:
            costs = scaled(costs, _multiply_adds(options[place], dataset), _multiply_adds(options[like], dataset))
        costs = costs._replace(before=costs.before + clock() - began)
        return make_plan(config.minutes, costs, steps_per_epoch=per_epoch, eval_every=config.eval_every)

    def epochs(place: int, like: int | None) -> float:
        try:
            return plan(place, like).epochs
        except ConfigError:  # there is no time for a step
            return 0.0

    place = 0
    first = plan(0)
    if len(options) > 1:
        place = chosen(candidates, [first.epochs, *(epochs(other, 0) for other in range(1, len(options)))])
        while place and place not in timings:  # what multiply-adds promise may not hold
            place -= epochs(place, None) < candidates[place].epochs
    made = plan(place)
    config = apply(made, options[place])
    pace = Pace(config.minutes, timings[place].costs, steps_per_epoch=per_epoch, began=began, clock=clock)
    end = datetime.now() + timedelta(seconds=began + made.seconds - clock())
    sides = " then ".join(map(str, config.progressive_sizes)) or str(config.image_size)
    say(
        f"plan: {config.model.name} at {sides} pixels, {config.epochs:g} epochs, an evaluation every "
        f"{config.eval_every:g}; expected to end at {end:%H:%M:%S}, {made.seconds / 60:.1f} minutes after its start"
    )
    if config.epochs < 1:
        warn("note: that is less than one pass over the images; give more --minutes, or a smaller model")
    return config, pace


def scaled(costs: Costs, multiply_adds: Sequence[float], others: Sequence[float]) -> Costs:
    """Costs of a model by those of another one, of which each step costs so much more as its multiply-adds are more.

    Args:
      costs: of the other.
      multiply_adds, others: of an image forward, for each image size of the one and of the other.
    """
    rate = sum(costs.steps) / len(costs.steps) / (sum(others) / len(others))
    more = multiply_adds[-1] / others[-1]
    return costs._replace(steps=tuple(rate * each for each in multiply_adds), evaluation=costs.evaluation * more)


def _resumed(config: Any, saved: Any) -> Any:
    """The config of a workdir that is there already: with its plan, whatever its minutes were."""
    if not saved.minutes:
        return config
    if saved.minutes != config.minutes:
        say(
            f"--minutes={config.minutes:g} is ignored: the run was planned for {saved.minutes:g} minutes, "
            f"{saved.epochs:g} epochs; leave it out and give --config.epochs with --allow_config_change to change that"
        )
    else:
        say(f"keeping the plan of {saved.minutes:g} minutes: {saved.epochs:g} epochs, however many are over")
    return adopt(config, saved)


def _multiply_adds(config: Any, dataset: Any) -> list[float]:
    """Of an image forward, at each of a run's sizes."""
    model = runs.build_model(config, len(dataset.class_names))
    sides = tuple(config.progressive_sizes) or (config.image_size,)
    return [float(count_model(model, side)["multiply_adds"]) for side in sides]


def _in_words(config: Any, timing: Timing) -> str:
    costs = timing.costs
    return (
        f"timed {config.model.name} at {config.image_size} pixels, input pipeline included: {timing.steps} steps of "
        f"{config.batch_size} images, {timing.images_per_second:,.0f} images/s (in the first epoch "
        f"{timing.first_images_per_second:,.0f}); compiling takes {costs.compiling:.0f} s, an evaluation with its "
        f"checkpoint {costs.evaluation:.1f} s"
    )
