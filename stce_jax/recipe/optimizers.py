"""Optimizers, their learning rate schedule, and the groups of parameters that they treat differently.

The shipped recipe is DeiT's: AdamW with warm-up and cosine, weight decay only on matrices and convolution kernels.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from stce_jax.errors import check_choice, check_range

SMALLEST, LARGEST = 1e-30, 3e38  # of the options: numbers in float32
DEIT_BATCH_SIZE = 512  # the batch for which DeiT's learning rate is given
Schedule = Callable[[Any], Any] | float


def peak_learning_rate(learning_rate: float, scaling: str, batch_size: int) -> float:
    """The peak rate: as given ("none"), or times batch / 512 ("linear", as in DeiT)."""
    return learning_rate * batch_size / DEIT_BATCH_SIZE if scaling == "linear" else learning_rate


def make_schedule(
    *, peak: float, warmup_from: float, final: float, warmup_steps: int, total_steps: int, shift: float = 0.0
) -> optax.Schedule:
    """Step -> learning rate: linear from `warmup_from` to `peak` in `warmup_steps`, then half a cosine to `final`.

    All of it comes `shift` steps later; below 0, earlier. See `Timetable.shift`.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=warmup_from,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=max(total_steps, warmup_steps + 1),
        end_value=final,
    )
    return (lambda step: schedule(step - shift)) if shift else schedule


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


# Name -> function (schedule, *, weight_decay, beta1, beta2, epsilon) of an optax GradientTransformation.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw}


def make_optimizer(
    schedule: Schedule, *, name: str = "adamw", clip_norm: float, **options: float
) -> optax.GradientTransformation:
    """The optimizer of that name, after clipping the gradient's global norm to `clip_norm` (0: no clipping).

    Args:
      schedule: of `make_schedule`, or a constant learning rate.
      name: a key of `OPTIMIZERS`.
      clip_norm: >= 0.
      options: of the optimizer.
    """
    optimizer = OPTIMIZERS[name](schedule, **options)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def check_options(
    *,
    name: str,
    learning_rate: float,
    learning_rate_scaling: str,
    warmup_epochs: float,
    warmup_learning_rate: float,
    final_learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    clip_norm: float,
    ema_decay: float,
) -> None:
    """Raises ConfigError if the options of `config.optimizer` cannot work."""
    check_choice("config.optimizer.name", name, tuple(OPTIMIZERS))
    numbers = {
        "learning_rate": learning_rate,
        "warmup_learning_rate": warmup_learning_rate,
        "final_learning_rate": final_learning_rate,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
    }
    for option, number in numbers.items():
        check_range(f"config.optimizer.{option}", number, 0, LARGEST)
    check_choice("config.optimizer.learning_rate_scaling", learning_rate_scaling, ("none", "linear"))
    check_range("config.optimizer.warmup_epochs", warmup_epochs, 0, 1_000_000)
    for option, number in (("beta1", beta1), ("beta2", beta2), ("ema_decay", ema_decay)):
        check_range(f"config.optimizer.{option}", number, 0, 1, below=True)  # an average at 1 never moves
    check_range("config.optimizer.epsilon", epsilon, SMALLEST, 1)
