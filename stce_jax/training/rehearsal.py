"""A rehearsal: a config's own training step with its own input pipeline, timed for a few steps that nothing keeps.

The step is compiled for the rehearsal alone: the run's own has another schedule. Its learning rate differs a little
each time, so that no kept program is taken for it, and compiling takes as long as it will for the run.
"""

import collections
import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from stce_jax.data.loader import to_devices
from stce_jax.data.views import Views
from stce_jax.training import assemble as runs
from stce_jax.training.evaluation import eval_step, mean_metrics
from stce_jax.training.mesh import batch_sharding, check_batch_size, make_mesh, round_up
from stce_jax.training.objective import build_objective, class_weights
from stce_jax.training.optimization import parameter_rules
from stce_jax.training.plan import Costs, with_keys
from stce_jax.training.sizes import Sizes, check_model
from stce_jax.training.step import check_accumulation, run_key
from stce_jax.training.stepping import build_stepping

TIMED = 0.04  # share of the minutes that timing steps may take, compilation apart
SHORTEST, LONGEST = 1.5, 20.0  # seconds of it
FEWEST, MOST = 3, 1_000_000  # steps that are timed at each size
DRAINED = 6  # steps before them, by which batches are used up that were made while the step compiled
EVALUATED = 4  # batches of the evaluation that is timed
CHECKPOINT, BYTES_PER_SECOND = 0.4, 3e8  # seconds of a checkpoint, and how fast its arrays are copied
AFTER = 4.0  # seconds that waiting for the last checkpoint, drawing curves and ending take
Clock = Callable[[], float]


class Timing(NamedTuple):
    """What was timed of a config.

    Attributes:
      costs: see `Costs`; what has passed before the timing is not in it.
      images_per_second: in training, from the second epoch on.
      first_images_per_second: in the first epoch.
      steps: that were timed.
    """

    costs: Costs
    images_per_second: float
    first_images_per_second: float
    steps: int


def time_run(config: Any, dataset: Any, *, clock: Clock = time.monotonic) -> Timing:
    """Makes the model of a config and trains it for a few steps, which nothing keeps.

    Raises:
      ConfigError: the config cannot be trained.
    """
    runs.check_options(config)
    mesh = make_mesh(config.fsdp_devices)
    check_batch_size(config.batch_size, mesh)
    check_accumulation(config.batch_size, config.accumulate, mesh)
    model = runs.build_model(config, len(dataset.class_names))
    sides = tuple(config.progressive_sizes) or (config.image_size,)
    check_model(model, sides)
    rate = config.optimizer.learning_rate * (1.0 + 0.01 * random.random())
    of_timing = with_keys(config, {"optimizer.learning_rate": rate})
    timetable = runs.build_timetable(with_keys(config, {"epochs": max(config.epochs, 1.0)}), dataset)
    rules = parameter_rules(of_timing, model)
    augment, objective = runs.build_augment(config, dataset), build_objective(config, class_weights(config, dataset))
    stepping = build_stepping(of_timing, model, rules, timetable, augment, objective, mesh)
    start = clock()
    state = stepping.begin_state(config.seed)()
    jax.block_until_ready(state)
    initialized = clock() - start
    steps = _Steps(stepping.make_step(model), state, run_key(config.seed, mesh), batch_sharding(mesh), clock)
    del state
    seconds = min(max(60.0 * TIMED * config.minutes, SHORTEST), LONGEST) / (2 if sides[0] == sides[-1] else 3)
    most = max(FEWEST, round(timetable.epoch))  # of a first pass over the images
    took: dict[int, float] = {}
    views, compiled, count, first = runs.train_views(config, dataset), 0.0, 0, 0.0
    for side in dict.fromkeys((sides[0], sides[-1])):
        for attempt in range(1 if took else 2):  # the first finds no image in memory
            loading = runs.train_batches(config, dataset, 0, views=views, size_of=Sizes((side,), (0,)).after)
            with loading as batches:
                begin = clock()
                steps.run(batches)
                compiling = clock() - begin  # and a step
                steps.run_for(batches, seconds / 2, DRAINED)
                number, took[side] = steps.run_for(batches, seconds, MOST if took else most)
            compiled += 0.0 if attempt else max(0.0, compiling - took[side])
            count += number
            first = first or took[side]
    warm = between(sides, took)
    compiled *= len(set(sides)) / len(took)
    evaluated = _time_evaluation(config, dataset, model, steps.state.variables, mesh, clock)
    saved = CHECKPOINT + sum(leaf.nbytes for leaf in jax.tree.leaves(steps.state)) / BYTES_PER_SECOND
    costs = Costs(
        before=initialized,
        compiling=compiled,
        steps=warm,
        first_epoch=max(0.0, first - warm[0]) * timetable.epoch,
        first_evaluation=evaluated[0],
        evaluation=evaluated[1] + saved,
        after=AFTER,
    )
    mean = sum(warm) / len(warm)
    return Timing(costs, config.batch_size / mean, config.batch_size / first, count)


def between(sides: Sequence[int], took: Mapping[int, float]) -> tuple[float, ...]:
    """Seconds of a step at each size, of those at the first and the last: in a straight line over the pixels.

    Compiling each size twice would take longer than the line is wrong.
    """
    pixels = [float(side**2) for side in (sides[0], sides[-1])]
    ends = took[sides[0]], took[sides[-1]]
    return tuple(float(np.interp(side**2, pixels, ends)) if pixels[0] < pixels[1] else ends[0] for side in sides)


class _Steps:
    """Training steps on batches of a feeder; no more than a run has on the devices at a time."""

    def __init__(self, step: Any, state: Any, key: Any, sharding: Any, clock: Clock) -> None:
        self.state = state
        self._step, self._key, self._sharding, self._clock = step, key, sharding, clock

    def run(self, batches: Any, wait: bool = True) -> Any:
        """One step; returns its metrics."""
        (batch,) = to_devices([next(batches)], self._sharding)
        self.state, metrics = self._step(self.state, batch, self._key)
        return jax.block_until_ready(metrics) if wait else metrics

    def run_for(self, batches: Any, seconds: float, most: int) -> tuple[int, float]:
        """(steps, seconds of each on average) of as many as begin in so many seconds, `FEWEST` to `most`."""
        running: collections.deque[Any] = collections.deque()
        start, count = self._clock(), 0
        while count < FEWEST or (count < most and self._clock() - start < seconds):
            running.append(self.run(batches, wait=False))
            count += 1
            if len(running) > 2:
                jax.block_until_ready(running.popleft())
        jax.block_until_ready(self.state)
        return count, (self._clock() - start) / count


class _First:
    """The first images of a source."""

    def __init__(self, source: Any, count: int) -> None:
        self._source, self._count = source, count
        self.label_shape = getattr(source, "label_shape", ())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._source[index]

    def name(self, index: int) -> str:
        return self._source.name(index)


def _time_evaluation(
    config: Any, dataset: Any, model: Any, variables: Any, mesh: Any, clock: Clock
) -> tuple[float, float]:
    """(seconds by which the first evaluation is longer, seconds of each) of all validation images."""
    rows = round_up(config.eval_batch_size, mesh)
    count = min(len(dataset.val), EVALUATED * rows)
    settings: Any = jax.config
    step = eval_step(model, dataset, config, mesh)

    def evaluate(step: Any, views: Views) -> float:
        start = clock()
        mean_metrics(variables, step, views, config, mesh)
        return clock() - start

    one = runs.eval_views(config, dataclasses.replace(dataset, val=_First(dataset.val, 1)))
    compiled = evaluate(step, one) - evaluate(step, one)
    if settings.jax_compilation_cache_dir:  # the run finds the same program there
        again = eval_step(model, dataset, config, mesh)
        compiled = evaluate(again, one) - evaluate(again, one)
    some = runs.eval_views(config, dataclasses.replace(dataset, val=_First(dataset.val, count)))
    first, second = evaluate(step, some), evaluate(step, some)
    share = len(dataset.val) / count
    return max(0.0, compiled) + max(0.0, first - second) * share, second * share
