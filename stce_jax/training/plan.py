"""How many epochs a run has in so many minutes: the arithmetic of `--minutes`, of what was timed before.

A plan is made when a run begins, see `pace` for when it changes, and written into its config as ordinary keys. A run
that was stopped has the epochs that were planned, and the time until the stop is over: resumed, it takes the rest.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from stce_jax.errors import ConfigError, check_choice, check_range
from stce_jax.training.candidates import CANDIDATES, Candidate

# Keys in epochs that keep their share of the run, where they have a value.
SCALED = (
    "optimizer.warmup_epochs",
    "optimizer.restart_epochs",
    "augment.mixing_off_epochs",
    "model.reduction.evit.shrink_start_epoch",
    "model.reduction.evit.shrink_epochs",
)
PLANNED = ("epochs", "eval_every", *SCALED)  # that a plan sets, beside those of candidates
SLACK = 0.03  # share of the time that is left over, for what no timing foresees
EVALUATIONS = 0.1  # of the time of training, what evaluations and checkpoints may take at most
SHORTEST, LONGEST = 0.1, 1_000_000  # minutes


class Costs(NamedTuple):
    """Seconds that the parts of a run take on this machine.

    Attributes:
      before: until the first step, compiling apart: all that has passed already, and what is still to be made.
      compiling: the training step, for each size.
      steps: of a step, for each of the run's image sizes, which have equal shares of the epochs.
      first_epoch: by how much the first epoch is longer, as its images are decoded for the first time.
      first_evaluation: by how much the first evaluation is longer, for the same reason and as it compiles.
      evaluation: of every evaluation, and the checkpoint that follows.
      after: of what comes after the last evaluation.
    """

    before: float
    compiling: float
    steps: tuple[float, ...]
    first_epoch: float
    first_evaluation: float
    evaluation: float
    after: float


class Plan(NamedTuple):
    """What a run does with its time.

    Attributes:
      epochs, eval_every: for the config.
      seconds: that the run takes from its start to its end.
    """

    epochs: float
    eval_every: float
    seconds: float


def check_options(*, minutes: Any, plan: Any) -> None:
    """Raises ConfigError if `config.minutes` or `config.plan` cannot work."""
    check_range("config.minutes", minutes, SHORTEST, LONGEST, or_zero=True)
    if plan != "":
        check_choice("config.plan", plan, tuple(CANDIDATES))


def make_plan(minutes: float, costs: Costs, *, steps_per_epoch: float, eval_every: float) -> Plan:
    """The most epochs that end in time, with evaluations as often as a config wants, or as there is time for.

    Evaluations part the epochs evenly, and the last one ends the run. Their distance is the config's at least, or the
    whole run where that is shorter.

    Args:
      minutes: of the whole run.
      costs: see `Costs`.
      steps_per_epoch: may be a fraction.
      eval_every: epochs between two evaluations, as the config has it.

    Raises:
      ConfigError: there is not even time for a step; it names the minutes that an epoch takes.
    """
    epoch = steps_per_epoch * sum(costs.steps) / len(costs.steps)
    eval_every = max(eval_every, _rounded(costs.evaluation / (EVALUATIONS * epoch), math.ceil, digits=2))
    fixed = costs.before + costs.compiling + costs.first_evaluation + costs.after
    left = (1.0 - SLACK) * 60.0 * minutes - fixed

    def fitting(seconds: float, each: float) -> float:
        """Epochs of so many seconds each in a time."""
        first = each + costs.first_epoch
        return seconds / first if seconds < first else (seconds - costs.first_epoch) / each

    evaluations = parts(fitting(left, epoch + costs.evaluation / eval_every), eval_every)
    epochs = fitting(left - evaluations * costs.evaluation, epoch)
    epochs = _rounded(epochs, math.floor, digits=4) if epochs > 0 else 0.0
    if epochs * steps_per_epoch < 1.0:
        needed = (fixed + costs.evaluation + epoch + costs.first_epoch) / (60.0 * (1.0 - SLACK))
        raise ConfigError(
            f"config.minutes is {minutes:g}, which leaves no time for a step; an epoch would end after "
            f"{_rounded(needed, math.ceil, digits=2):g} minutes"
        )
    evaluations = min(evaluations, parts(epochs, eval_every))  # of epochs that were rounded down
    seconds = fixed + evaluations * costs.evaluation + epochs * epoch + min(1.0, epochs) * costs.first_epoch
    return Plan(epochs, distance(epochs, evaluations), seconds)


def parts(epochs: float, eval_every: float) -> int:
    """How many evaluations part a number of epochs evenly, at least so many epochs apart; 1 or more."""
    return max(1, math.floor(epochs / eval_every))


def distance(epochs: float, evaluations: int) -> float:
    """Epochs between evaluations that part a number of epochs: rounded up, so that none comes just before the last."""
    return _rounded(epochs / evaluations, math.ceil, digits=4)


def chosen(candidates: Sequence[Candidate], affordable: Sequence[float]) -> int:
    """Which of the candidates to take: the last one that has the epochs it wants, or the first.

    Args:
      candidates: cheapest first.
      affordable: epochs that each would have.
    """
    enough = [place for place, each in enumerate(candidates) if affordable[place] >= each.epochs]
    return max(enough, default=0)


def with_keys(config: config_dict.ConfigDict, keys: Any) -> config_dict.ConfigDict:
    """A copy of a config with other values of these keys, given as {"optimizer.name": ...}."""
    changed = config.copy_and_resolve_references().unlock()
    changed.update_from_flattened_dict(dict(keys))
    return changed.lock()


def apply(plan: Plan, config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The config with a plan's epochs; what it gives in epochs besides keeps its share of the run, see `SCALED`."""
    share = plan.epochs / config.epochs
    keys: dict[str, Any] = {"epochs": plan.epochs, "eval_every": plan.eval_every}
    for key in SCALED:
        if value := value_of(config, key):
            several = isinstance(value, tuple)
            scaled = tuple(_rounded(each * share, round, digits=4) for each in (value if several else (value,)))
            keys[key] = scaled if several else scaled[0]
    return with_keys(config, keys)


def adopt(config: config_dict.ConfigDict, saved: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The config of a run that is there already, with what was planned when it began."""
    if saved.plan != config.plan:
        return config  # which is refused as another config
    keys = [*PLANNED, *(CANDIDATES[config.plan][0].keys if config.plan else ())]
    return with_keys(config, {key: value_of(saved, key) for key in keys} | {"minutes": saved.minutes})


def value_of(config: config_dict.ConfigDict, key: str) -> Any:
    """What a config has under a key such as "optimizer.name"."""
    value: Any = config
    for word in key.split("."):
        value = value[word]
    return value


def _rounded(number: float, how: Any, *, digits: int) -> float:
    """A number above 0 with so many significant digits; `how` is `round`, `math.floor` or `math.ceil`."""
    if number <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(number)) - digits + 1)
    return float(f"{how(round(number / unit, 6)) * unit:.{digits}g}")
