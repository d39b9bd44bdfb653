"""Optimizers, and the groups of parameters that they treat differently. `schedules` has their learning rates.

The shipped recipe is DeiT's: AdamW with warm-up and cosine, weight decay only on matrices and convolution kernels.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax

from stce_jax.errors import ConfigError, check_choice, check_range
from stce_jax.recipe import schedules
from stce_jax.recipe.averages import WIDEST_SHARE
from stce_jax.recipe.muon import Matrices, hidden_matrices, scale_by_muon
from stce_jax.recipe.parameters import Rates, check_patterns, scale_by_rates
from stce_jax.recipe.schedule_free import schedule_free

SMALLEST, LARGEST = 1e-30, 3e38  # of the options: numbers in float32
DEIT_BATCH_SIZE = 512  # the batch for which DeiT's learning rate is given
Schedule = Callable[[Any], Any] | float


class Optimizer(Protocol):
    """An optax GradientTransformation, or an `Averaging`."""

    @property
    def init(self) -> Callable[[Any], Any]: ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]: ...


def peak_learning_rate(learning_rate: float, scaling: str, batch_size: int) -> float:
    """The peak rate: as given ("none"), or times batch / 512 ("linear", as in DeiT)."""
    return learning_rate * batch_size / DEIT_BATCH_SIZE if scaling == "linear" else learning_rate


def parameter_group(path: tuple[str, ...], shape: tuple[int, ...]) -> str:
    """ "decay" for leaves named "kernel", "no_decay" for the rest.

    Biases, norms, the class token and the position embedding do not decay, whatever their rank (a scan over layers
    stacks even biases into matrices).

    Args:
      path: names from the root of the parameters to the leaf, ("blocks_0", "mlp", "kernel").
      shape: of the leaf.
    """
    del shape
    return "decay" if path[-1] == "kernel" else "no_decay"


def group_parameters(params: Any, group: Callable[[tuple[str, ...], tuple[int, ...]], str] = parameter_group) -> Any:
    """The tree of parameters with the name of its group in each leaf's place, as `optax.partition` takes it."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: group(tuple(key.key for key in path), tuple(leaf.shape)), params
    )


def decay_mask(params: Any) -> Any:
    """True for what weight decay applies to."""
    return jax.tree.map(lambda group: group == "decay", group_parameters(params))


def adamw(
    schedule: Schedule, *, weight_decay: float, beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019)."""
    return optax.adamw(schedule, beta1, beta2, epsilon, weight_decay=weight_decay, mask=decay_mask)


def lion(schedule: Schedule, *, weight_decay: float, beta1: float, beta2: float) -> optax.GradientTransformation:
    """Lion: updates are the sign of a momentum.

    Source: Chen et al. 2023, "Symbolic discovery of optimization algorithms", arXiv 2302.06675. They have beta2 0.99,
    a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as much larger.
    """
    return optax.lion(schedule, beta1, beta2, weight_decay=weight_decay, mask=decay_mask)


def muon(
    schedule: Schedule,
    *,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    muon_momentum: float = 0.95,
    matrices: Matrices = hidden_matrices,
) -> optax.GradientTransformation:
    """Muon on the hidden matrices, AdamW on the rest, see `recipe.muon`: one learning rate and weight decay for both.

    Args:
      muon_momentum: of the matrices; `beta1`, `beta2` and `epsilon` are AdamW's.
      matrices: which parameters are matrices, and how they are cut.
    """
    hidden = optax.chain(
        scale_by_muon(matrices, momentum=muon_momentum),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    rest = adamw(schedule, weight_decay=weight_decay, beta1=beta1, beta2=beta2, epsilon=epsilon)

    def group(path: tuple[str, ...], shape: tuple[int, ...]) -> str:
        return "adamw" if matrices(path, shape) is None else "muon"

    return optax.partition({"muon": hidden, "adamw": rest}, lambda params: group_parameters(params, group))


def schedule_free_adamw(
    schedule: Schedule, *, weight_decay: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
    """What `schedule_free` averages: AdamW without momentum."""
    return optax.chain(
        optax.scale_by_rms(beta2, epsilon, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


# Name -> function (schedule, *, options of `config.optimizer` that it has) of an optax GradientTransformation.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "muon": muon,
    "lion": lion,
    "schedule_free_adamw": schedule_free_adamw,
}
AVERAGED = ("schedule_free_adamw",)  # those that run inside of `schedule_free`


def make_optimizer(
    schedule: Schedule, *, name: str = "adamw", clip_norm: float, rates: Rates | None = None, **options: Any
) -> Optimizer:
    """The optimizer of that name, after clipping the gradient's global norm to `clip_norm` (0: no clipping).

    Args:
      schedule: of `make_schedule`, or a constant learning rate.
      name: a key of `OPTIMIZERS`.
      clip_norm: >= 0.
      rates: what the learning rate of each parameter is multiplied by; None: 1.
      options: those of all optimizers; each takes its own.
    """
    taken = inspect.signature(OPTIMIZERS[name]).parameters
    optimizer = OPTIMIZERS[name](schedule, **{option: options[option] for option in taken if option in options})
    if rates is not None:
        optimizer = optax.chain(optimizer, scale_by_rates(rates))
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return schedule_free(optimizer, schedule, beta=options["beta1"]) if name in AVERAGED else optimizer


def check_options(
    *,
    name: str,
    learning_rate: float,
    learning_rate_scaling: str,
    schedule: str,
    decay_share: float,
    restart_epochs: tuple[float, ...],
    restart_learning_rate: float,
    warmup_epochs: float,
    warmup_learning_rate: float,
    final_learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    muon_momentum: float,
    clip_norm: float,
    sam_rho: float,
    layer_decay: float,
    freeze: tuple[str, ...],
    ema_decay: float,
    ema_share: float,
) -> None:
    """Raises ConfigError if the options of `config.optimizer` cannot work, alone or together."""
    check_choice("config.optimizer.name", name, tuple(OPTIMIZERS))
    numbers = {
        "learning_rate": learning_rate,
        "warmup_learning_rate": warmup_learning_rate,
        "final_learning_rate": final_learning_rate,
        "restart_learning_rate": restart_learning_rate,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
    }
    for option, number in numbers.items():
        check_range(f"config.optimizer.{option}", number, 0, LARGEST)
    check_choice("config.optimizer.learning_rate_scaling", learning_rate_scaling, ("none", "linear"))
    check_range("config.optimizer.warmup_epochs", warmup_epochs, 0, 1_000_000)
    schedules.check_options(name=schedule, decay_share=decay_share, restart_epochs=restart_epochs)
    shares = {"beta1": beta1, "beta2": beta2, "muon_momentum": muon_momentum, "ema_decay": ema_decay}
    for option, number in shares.items():
        check_range(f"config.optimizer.{option}", number, 0, 1, below=True)  # an average at 1 never moves
    check_range("config.optimizer.epsilon", epsilon, SMALLEST, 1)
    check_range("config.optimizer.sam_rho", sam_rho, 1e-6, 100, or_zero=True)
    check_range("config.optimizer.layer_decay", layer_decay, 1e-3, 1)
    check_patterns(freeze)
    check_range("config.optimizer.ema_share", ema_share, 1e-3, WIDEST_SHARE, or_zero=True)
    if name in AVERAGED and (schedule != "constant" or ema_decay or ema_share):
        raise ConfigError(
            f"config.optimizer.name is {name}, which averages the weights instead of lowering the learning rate; give "
            "--config.optimizer.schedule=constant --config.optimizer.ema_decay=0 --config.optimizer.ema_share=0"
        )
    if ema_decay and ema_share:
        raise ConfigError(
            f"config.optimizer.ema_share is {ema_share} and ema_decay is {ema_decay}, and there is one average; give "
            "one of them, and 0 for the other"
        )
