"""The training step that a config asks for, and the state that it changes: for a run, and for its rehearsal."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import config_dict

from stce_jax.models.bodies import Body
from stce_jax.recipe.objectives import Objective
from stce_jax.recipe.optimizers import Optimizer
from stce_jax.training import optimization
from stce_jax.training.mesh import sharded_shapes
from stce_jax.training.optimization import ParameterRules
from stce_jax.training.state import TrainState, abstract_state, begin_state
from stce_jax.training.step import Augment, make_train_step
from stce_jax.training.timetable import Timetable


class Stepping(NamedTuple):
    """What trains a model.

    Attributes:
      schedule: steps that were applied -> learning rate.
      optimizer: of the parameters that are trained.
      state_shapes: a TrainState of shapes and shardings.
      make_step: body -> its training step, see `make_train_step`. The body may be a phase of the model.
      begin_state: seed -> a function that gives a TrainState of step 0, on the devices, see `state.begin_state`.
    """

    schedule: optax.Schedule
    optimizer: Optimizer
    state_shapes: TrainState
    make_step: Callable[[Body], Any]
    begin_state: Callable[[int], Callable[[], TrainState]]


def build_stepping(
    config: config_dict.ConfigDict,
    model: Body,
    rules: ParameterRules,
    timetable: Timetable,
    augment: Augment,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    schedule: optax.Schedule | None = None,
) -> Stepping:
    """The optimizer and step of a config; for `rules` and `schedule` see `optimization`. Nothing is computed."""
    schedule, optimizer = optimization.build_optimizer(config, timetable, rules, schedule)
    shape: dict[str, Any] = {"image_size": config.image_size, "with_ema": optimization.keeps_average(config)}
    state_shapes = sharded_shapes(abstract_state(model, optimizer, **shape), mesh)
    make_step = functools.partial(
        make_train_step,
        optimizer=optimizer,
        augment=augment,
        ema_decay=optimization.average_decay(config, timetable),
        state=state_shapes,
        mesh=mesh,
        objective=objective,
        accumulate=config.accumulate,
        deterministic=config.deterministic,
        sam_rho=config.optimizer.sam_rho,
        frozen=rules.frozen,
    )

    def begin(seed: int) -> Callable[[], TrainState]:
        return begin_state(model, optimizer, seed=seed, mesh=mesh, **shape)

    return Stepping(schedule, optimizer, state_shapes, make_step, begin)
