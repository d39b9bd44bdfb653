"""One training step and one evaluation step, jitted over the mesh.

Neither knows a model or a dataset: modules and the augment function are passed in. Neither knows of signals: see
`carries_flag` for how the steps of several processes stop together.

Shape letters: B global batch, H W image height and width, K classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt8

from stce_jax.errors import ConfigError
from stce_jax.models.bodies import Body
from stce_jax.platform import jax_settings
from stce_jax.platform.backends import compiled_for
from stce_jax.processes import peers as processes
from stce_jax.processes.stop_flag import carries_flag
from stce_jax.recipe.averages import Decay
from stce_jax.recipe.objectives import SINGLE_LABEL, Objective
from stce_jax.recipe.optimizers import Optimizer
from stce_jax.recipe.parameters import Frozen, split
from stce_jax.training.frozen import apply_with
from stce_jax.training.gathering import gathering_apply
from stce_jax.training.left import LOSSES, METRICS, added_loss, left_metrics
from stce_jax.training.mesh import batch_sharding, replicated, state_shardings
from stce_jax.training.state import TrainState
from stce_jax.training.update import update, update_if

ROWS = "rows"  # of an evaluation step
Metrics = dict[str, Float[Array, ""]]
Images = Float[Array, "B H W 3"]
Targets = Float[Array, "B K"]
Augment = Callable[
    [Key[Array, ""], Int[Array, ""], UInt8[Array, "B H W 3"], Int[Array, "B ..."]], tuple[Images, Targets]
]
Apply = Callable[..., Any]  # as the model's
Gradients = tuple[Any, Any, Metrics, Metrics]
Normalize = Callable[[UInt8[Array, "B H W 3"]], Images]


def make_train_step(
    model: Body,
    optimizer: Optimizer,
    augment: Augment,
    *,
    ema_decay: Decay,
    state: TrainState,
    mesh: Mesh,
    objective: Objective = SINGLE_LABEL,
    accumulate: int = 1,
    deterministic: bool = False,
    sam_rho: float = 0.0,
    frozen: Frozen | None = None,
) -> Any:
    """Compiles (state, batch, key) -> (state, metrics). The old state is donated.

    Every draw comes from (key, step). The key is an argument, so that runs with other seeds compile nothing again; see
    `run_key`. The loss is the mean over the batch's images; BatchNorm's statistics are those of all devices' images,
    because the step is written for the global batch and XLA splits it.

    With `accumulate` > 1 the batch is augmented and mixed as a whole, then processed in that many micro-batches, one
    after the other, so that only one micro-batch's activations are held. The update uses the mean of their gradients.
    Each is normalised by its own BatchNorm statistics, and the running statistics are updated by each in turn. Without
    BatchNorm, dropout and drop path (whose draws differ) the result is the large batch's, up to rounding.

    A step whose loss or gradient is not finite is skipped: parameters, statistics, optimizer state and average stay as
    they are, to the bit; only `state.step`, the position in the data, advances. The optimizer's own counts stay too, so
    a learning rate schedule lags behind `state.step` by the number of steps skipped since step 0.

    With `sam_rho` > 0 a step is sharpness-aware (Foret et al. 2021, arXiv 2010.01412): the update's gradient is taken
    at parameters that lie `sam_rho` further along the gradient of the whole batch. Both passes see the same images,
    draws and micro-batches. Loss, hits and BatchNorm's running statistics are the first pass's; `gradient_norm` is the
    second's. Neither gradient may be infinite or NaN.

    Args:
      model: called as model(images, train=True) with an rng "dropout".
      optimizer: updates the parameters that are trained; of `frozen` ones it has no state, see `frozen.train_only`.
      augment: (key, step, images, labels) -> (images, targets).
      ema_decay: of the moving average of parameters and statistics, if the state keeps one: a number, or a function of
        the steps made so far.
      state: a TrainState or its shapes, for its shardings.
      mesh: see `make_mesh`.
      objective: the loss of each image, by default cross entropy with soft targets.
      accumulate: micro-batches in a batch, see `check_accumulation`.
      deterministic: on GPUs, use only operations that give the same bits every time.
      sam_rho: >= 0; 0: one pass.
      frozen: path of a parameter -> whether it stays as it is, to the bit; see `frozen.apply_with`. None: none does.

    Returns:
      A jitted function; its batch is {"image": uint8 [B, H, W, 3], "label": int32 [B], or [B, K] of several labels}.
      Its metrics are float32 scalars "loss", those of `objective.hits` ("top1" and "top5", fractions, against each
      image's heaviest target), "gradient_norm" (global, before the optimizer clips it), "skipped" (1 if the step was
      skipped, else 0), and the means of what modules leave for the log, see `left`; what they leave for the loss is
      part of it. A skipped step's may be NaN or inf.
    """

    backend = mesh.devices.flat[0].platform

    @compiled_for(backend)
    def train_step(state: TrainState, batch: dict[str, Array], key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key = step_keys(key)
        images, targets = augment(augment_key, state.step, batch["image"], batch["label"])
        dropout_key = jax.random.fold_in(dropout_key, state.step)
        batches = (images, targets) if accumulate == 1 else _split((images, targets), accumulate, mesh)
        apply, variables = _trained(model, optimizer, state, frozen, mesh)
        backward = functools.partial(_forward_backward if accumulate == 1 else _accumulate, objective)
        gradients, statistics, metrics, left = backward(apply, variables, batches, dropout_key)
        finite = jnp.isfinite(metrics["loss"])
        if sam_rho:
            finite &= jnp.isfinite(optax.tree.norm(gradients))
            climbed = {**variables, "params": _climbed(variables["params"], gradients, sam_rho)}
            gradients = backward(apply, climbed, batches, dropout_key)[0]
        norm = optax.tree.norm(gradients)
        finite &= jnp.isfinite(norm)
        change = functools.partial(update, optimizer, gradients, statistics, ema_decay, frozen)
        updated = update_if(finite, change, state)
        metrics |= {"gradient_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32), **left}
        return updated.replace(step=state.step + 1), metrics

    options = jax_settings.train_options(backend, deterministic=deterministic, processes=jax.process_count())
    step = jax.jit(
        carries_flag(train_step),
        donate_argnums=0,
        out_shardings=(state_shardings(state, mesh), None),
        compiler_options=options,
    )
    return processes.compile_together(step)


def make_eval_step(
    model: Body,
    normalize: Normalize,
    *,
    objective: Objective = SINGLE_LABEL,
    mesh: Mesh | None = None,
    deterministic: bool = False,
) -> Any:
    """Compiles (variables, batch) -> sums over the batch: those of `objective.scores` and "count", float32 scalars.

    To these come the sums of what modules leave for the log, see `left`; and, if the objective has a score of all
    images together, ROWS: the "logits", "labels" and "weight" that it needs, whole on all devices of `mesh`.

    Args:
      model: called as model(images, train=False).
      normalize: see `augment.normalize`.
      objective, mesh, deterministic: see `make_train_step`; None of no mesh: variables are whole on each device.

    Returns:
      A jitted function; its batch is that of a training step, with "weight" float32 [B]: 0 for the images that only
      fill the batch up. See `carries_flag` for its argument `after`, which makes steps wait for one another.
    """
    apply = model.apply if mesh is None else gathering_apply(model, mesh)
    backend = jax.default_backend()

    @compiled_for(backend)
    def eval_step(variables: Any, batch: dict[str, Array]) -> dict[str, Any]:
        logits, left = apply(variables, normalize(batch["image"]), train=False, mutable=[METRICS])
        weight = batch["weight"]
        values = {**objective.scores(logits, batch["label"]), **left_metrics(left)}
        sums = {name: jnp.where(weight > 0, value * weight, 0.0).sum() for name, value in values.items()}
        sums |= {"count": weight.sum()}
        if objective.of_all:
            assert mesh is not None
            rows = {"logits": logits, "labels": batch["label"], "weight": weight}
            return sums | {ROWS: jax.lax.with_sharding_constraint(rows, replicated(mesh))}
        return sums

    options = jax_settings.eval_options(backend, deterministic=deterministic, processes=jax.process_count())
    return processes.compile_together(jax.jit(carries_flag(eval_step), compiler_options=options))


def check_accumulation(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ConfigError if `accumulate` does not divide batch_size / devices; it names a number that does.

    Args:
      batch_size: images of the global batch, a multiple of the devices.
      accumulate: micro-batches in it, >= 1.
      mesh: see `make_mesh`.
    """
    share = batch_size // mesh.size
    if share % accumulate:
        fitting = min((n for n in range(1, share + 1) if share % n == 0), key=lambda n: abs(n - accumulate))
        raise ConfigError(
            f"accumulate {accumulate} does not divide the {share} images that each of {mesh.size} devices gets of "
            f"batch_size {batch_size}; {fitting} does"
        )


def run_key(seed: int, mesh: Mesh) -> Key[Array, ""]:
    """The key of all draws of a run, on every device of a mesh."""
    return jax.jit(lambda key: key, out_shardings=replicated(mesh))(jax.random.key(seed))


def step_keys(key: Key[Array, ""]) -> Key[Array, "2"]:
    """(key of the augmentation, key of dropout and drop path) of a run; steps and positions are folded into them."""
    return jax.random.split(key)


def _trained(
    model: Body, optimizer: Optimizer, state: TrainState, frozen: Frozen | None, mesh: Mesh
) -> tuple[Apply, Any]:
    """(the model as a function, the variables that its gradients are taken at, without frozen parameters)."""
    apply, params = gathering_apply(model, mesh), state.variables["params"]
    if frozen is not None:
        params, rest = split(params, frozen)
        apply = apply_with(apply, rest, frozen)
    gradient_point = getattr(optimizer, "gradient_point", None)
    if gradient_point is not None:
        params = gradient_point(params, state.optimizer)
    return apply, {**state.variables, "params": params}


def _climbed(params: Any, gradients: Any, rho: float) -> Any:
    """The parameters `rho` further along their gradients, in the norm of all of them; those without stay."""
    norm = optax.tree.norm(gradients)
    scale = rho / jnp.where(norm > 0, norm, 1.0)
    return jax.tree.map(lambda param, gradient: param + scale * gradient, params, gradients)


def _forward_backward(
    objective: Objective, apply: Apply, variables: Any, batch: tuple[Images, Targets], key: Key[Array, ""]
) -> Gradients:
    """(gradients, {"batch_stats": updated} or {}, metrics, metrics that modules leave) of the loss over these images.

    The loss is the images' mean, and what modules add to it.
    """
    images, targets = batch
    mutable = ["batch_stats", LOSSES, METRICS]

    def loss_and_outputs(params: Any) -> tuple[Float[Array, ""], tuple[Float[Array, "B K"], Any]]:
        merged = {**variables, "params": params}
        logits, left = apply(merged, images, train=True, rngs={"dropout": key}, mutable=mutable)
        return added_loss(left, objective.loss(logits, targets).mean()), (logits, left)

    (loss, (logits, left)), gradients = jax.value_and_grad(loss_and_outputs, has_aux=True)(variables["params"])
    hits = {name: values.mean() for name, values in objective.hits(logits, targets).items()}
    statistics = {name: left[name] for name in left if name not in (LOSSES, METRICS)}
    means = {name: values.mean() for name, values in left_metrics(left).items()}
    return gradients, statistics, {"loss": loss, **hits}, means


def _split(batch: Any, count: int, mesh: Mesh) -> Any:
    """Cuts the arrays [B, ...] of a batch into micro-batches, [count, B / count, ...].

    Micro-batch a takes the rows i * count + a, because each device holds neighbouring rows: it processes its own rows,
    and none travel.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))

    def split(rows: Array) -> Array:
        rows = jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0)
        return jax.lax.with_sharding_constraint(rows, sharding)

    return jax.tree.map(split, batch)


def _accumulate(
    objective: Objective, apply: Apply, variables: Any, micro_batches: tuple[Array, Array], key: Key[Array, ""]
) -> Gradients:
    """As `_forward_backward`, over micro-batches in turn: mean gradients and metrics, the last one's statistics."""
    params = variables["params"]
    count = len(micro_batches[0])

    def accumulate(carry: tuple[Any, Any], numbered: tuple[Int[Array, ""], tuple[Images, Targets]]) -> Any:
        statistics, sums = carry
        number, batch = numbered
        merged = {"params": params, **statistics}
        step_key = jax.random.fold_in(key, number)
        gradients, statistics, metrics, left = _forward_backward(objective, apply, merged, batch, step_key)
        return (statistics, jax.tree.map(jnp.add, sums, (gradients, metrics))), left

    statistics = {name: variables[name] for name in variables if name != "params"}
    zeros = jax.tree.map(jnp.zeros_like, params), dict.fromkeys(("loss", *objective.hit_names), jnp.zeros(()))
    (statistics, sums), left = jax.lax.scan(accumulate, (statistics, zeros), (jnp.arange(count), micro_batches))
    gradients, metrics = jax.tree.map(lambda total: total / count, sums)
    return gradients, statistics, metrics, {name: values.mean() for name, values in left.items()}  # of [count] each
