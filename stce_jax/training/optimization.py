"""From `config.optimizer` to what it names: schedule, optimizer, average, and the rules for single parameters."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, cast

import optax
from flax import traverse_util
from ml_collections import config_dict

from stce_jax.models.bodies import Body
from stce_jax.models.bodies.depths import layers_of
from stce_jax.recipe import averages, schedules
from stce_jax.recipe import optimizers as optim
from stce_jax.recipe.muon import Matrices, hidden_matrices
from stce_jax.recipe.parameters import Frozen, Rates, check_frozen, is_frozen, layer_rates
from stce_jax.training.frozen import train_only
from stce_jax.training.state import abstract_variables
from stce_jax.training.timetable import Timetable


@dataclasses.dataclass(frozen=True)
class ParameterRules:
    """Functions of a parameter's path, or of path and shape.

    Attributes:
      frozen: whether it stays as it is; None: no parameter does.
      rates: what its learning rate is multiplied by; None: 1.
      matrices: how Muon cuts it.
      note: what is frozen, for people.
    """

    frozen: Frozen | None = None
    rates: Rates | None = None
    matrices: Matrices = hidden_matrices
    note: str = ""


def parameter_rules(config: config_dict.ConfigDict, model: Body) -> ParameterRules:
    """The rules of a config for the parameters of its model.

    Raises:
      ConfigError: the model has no part that is to be frozen, nothing is left to train, or it has no blocks and they
        are to learn at different rates.
    """
    options, module = config.optimizer, cast(Any, model)
    matrices: Matrices = hidden_matrices
    fused: Mapping[str, int] | None = getattr(module, "fused_kernels", None)
    if fused is not None:
        matrices = functools.partial(hidden_matrices, fused=fused)
    if not options.freeze and options.layer_decay == 1:
        return ParameterRules(matrices=matrices)
    flat = traverse_util.flatten_dict(abstract_variables(model, config.image_size)["params"])
    paths, frozen, rates, note = list(flat), None, None, ""
    if options.freeze:
        check_frozen(options.freeze, paths)
        frozen = is_frozen(options.freeze)
        trained, total = (
            sum(leaf.size for path, leaf in flat.items() if whole or not frozen(path)) for whole in (0, 1)
        )
        note = f"trains {trained:,} of {total:,} parameters, frozen: {', '.join(options.freeze)}"
    if options.layer_decay != 1:
        rates = layer_rates(options.layer_decay, *layers_of(model, paths))
    return ParameterRules(frozen, rates, matrices, note)


def build_schedule(config: config_dict.ConfigDict, timetable: Timetable) -> optax.Schedule:
    """Steps that were applied -> learning rate, of a config or of a checkpoint's."""
    options = config.optimizer
    peak, restart = (
        optim.peak_learning_rate(rate, options.learning_rate_scaling, config.batch_size)
        for rate in (options.learning_rate, options.restart_learning_rate)
    )
    return schedules.make_schedule(
        peak=peak,
        warmup_from=options.warmup_learning_rate,
        final=options.final_learning_rate,
        warmup_steps=round(options.warmup_epochs * timetable.epoch),
        total_steps=round(config.epochs * timetable.epoch),
        shift=timetable.shift,
        name=options.schedule,
        decay_share=options.decay_share,
        restart_steps=[round(epoch * timetable.epoch) for epoch in options.restart_epochs],
        restart=restart,
    )


def build_optimizer(
    config: config_dict.ConfigDict,
    timetable: Timetable,
    rules: ParameterRules | None = None,
    schedule: optax.Schedule | None = None,
) -> tuple[optax.Schedule, optim.Optimizer]:
    """(schedule, optimizer) of a config.

    Args:
      config: a run's.
      timetable: its own.
      rules: see `parameter_rules`; None has all parameters learn alike.
      schedule: another one than the config's.
    """
    options, rules = config.optimizer, rules or ParameterRules()
    schedule = schedule or build_schedule(config, timetable)
    own = ("name", "weight_decay", "beta1", "beta2", "epsilon", "muon_momentum", "clip_norm")
    chosen = {option: options[option] for option in own}
    optimizer = optim.make_optimizer(schedule, rates=rules.rates, matrices=rules.matrices, **chosen)
    return schedule, train_only(optimizer, rules.frozen)


def keeps_average(config: config_dict.ConfigDict) -> bool:
    """Whether a run keeps a moving average beside its weights."""
    return config.optimizer.ema_decay > 0 or config.optimizer.ema_share > 0


def average_decay(config: config_dict.ConfigDict, timetable: Timetable) -> averages.Decay:
    """The decay of that average, see `make_train_step`."""
    share = config.optimizer.ema_share
    return averages.power_decay(share, timetable.shift) if share else config.optimizer.ema_decay
