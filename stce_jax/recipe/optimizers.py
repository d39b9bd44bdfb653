"""DeiT's optimizer: AdamW with warm-up and cosine, weight decay on matrices and convolution kernels alone."""

import jax
import optax

from stce_jax.errors import check_choice, check_range

DEIT_BATCH_SIZE = 512  # the batch for which DeiT's learning rate is given


def peak_learning_rate(learning_rate, scaling, batch_size):
    """The peak rate: as given ("none"), or times batch / 512 ("linear", as in DeiT)."""
    return learning_rate * batch_size / DEIT_BATCH_SIZE if scaling == "linear" else learning_rate


def make_schedule(*, peak, warmup_from, final, warmup_steps, total_steps):
    """Step -> learning rate: linear from `warmup_from` to `peak` in `warmup_steps`, then half a cosine to `final`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=warmup_from,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=max(total_steps, warmup_steps + 1),
        end_value=final,
    )


def make_optimizer(schedule, *, weight_decay, beta1, beta2, epsilon, clip_norm):
    """AdamW (Loshchilov and Hutter 2019), after clipping the gradient's global norm to `clip_norm` (0: no clipping)."""
    adamw = optax.adamw(schedule, beta1, beta2, epsilon, weight_decay=weight_decay, mask=decay_mask)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw


def decay_mask(params):
    """True for what weight decay applies to: leaves named "kernel".

    Biases, norms, the class token and the position embedding are not, whatever their rank (a scan over layers stacks
    even biases into matrices).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def check_options(
    *,
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
    del warmup_learning_rate, final_learning_rate, beta1, beta2, epsilon  # any will do
    check_range("config.optimizer.learning_rate", learning_rate, 0)
    check_choice("config.optimizer.learning_rate_scaling", learning_rate_scaling, ("none", "linear"))
    check_range("config.optimizer.warmup_epochs", warmup_epochs, 0)
    check_range("config.optimizer.weight_decay", weight_decay, 0)
    check_range("config.optimizer.clip_norm", clip_norm, 0)
    check_range("config.optimizer.ema_decay", ema_decay, 0, 1)
