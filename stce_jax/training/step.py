"""One training step and one evaluation step, jitted over the mesh.

Neither knows a model or a dataset: modules and the augment function are passed in.

Shape letters: B global batch, H W image height and width.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from stce_jax.errors import ConfigError
from stce_jax.training.mesh import batch_sharding, replicated, state_shardings


def make_train_step(model, optimizer, augment, *, ema_decay, state, mesh, accumulate=1, deterministic=False):
    """Compiles (state, batch, key) -> (state, metrics). The old state is donated.

    Every draw comes from (key, step). The key is an argument, so that runs with other seeds compile nothing anew; see
    `run_key`. The loss is the batch's mean cross entropy with soft targets; BatchNorm's
    statistics are those of all devices' images, because the step is written for the global batch and XLA splits it.

    With `accumulate` > 1 the batch is augmented and mixed as a whole, then worked off in that many micro-batches, one
    after the other, so that the activations of one alone are held. The update follows the mean of their gradients.
    Each is normalised by its own BatchNorm statistics, and the running ones take them up in turn. Without BatchNorm,
    dropout and drop path (whose draws differ) the result is the large batch's, but for rounding.

    A step whose loss or gradient is not finite is skipped: parameters, statistics, optimizer state and average stay as
    they are, to the bit, and `state.step`, the position in the data, alone goes on. The optimizer's own counts stay
    too, so a learning rate schedule lags behind `state.step` by the number of steps skipped since step 0.

    Args:
      model: linen module, called as model(images, train=True) with an rng "dropout".
      optimizer: optax GradientTransformation.
      augment: (key, step, images uint8, labels) -> (images float32, targets [B, classes]).
      ema_decay: of the moving average of parameters and statistics, if the state keeps one.
      accumulate: micro-batches in a batch, see `check_accumulation`.
      deterministic: on GPUs, use operations alone that give the same bits every time.
      state: a TrainState or its shapes, for its shardings.
      mesh: see `make_mesh`.

    Returns:
      A jitted function; its batch is {"image": uint8 [B, H, W, 3], "label": int32 [B]}, its metrics are float32 scalars
      "loss", "top1" and "top5" (fractions, against each image's heaviest target), "gradient_norm" (global, before the
      optimizer clips it), "skipped" (1 if the step was skipped, else 0) and "asked" (whether a process asks all to
      stop: the greatest of the batch's "asked", int32 [B], 0 if it has none). A skipped step's may be NaN or inf.
    """

    def train_step(state, batch, key):
        augment_key, dropout_key = step_keys(key)
        images, targets = augment(augment_key, state.step, batch["image"], batch["label"])
        dropout_key = jax.random.fold_in(dropout_key, state.step)
        if accumulate == 1:
            gradients, statistics, metrics = _forward_backward(model, state.variables, images, targets, dropout_key)
        else:
            micro_batches = _split((images, targets), accumulate, mesh)
            gradients, statistics, metrics = _accumulated(model, state.variables, micro_batches, dropout_key)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        update = functools.partial(_update, optimizer, gradients, statistics, ema_decay)
        kept = _update_if(finite, update, state)
        metrics |= {"gradient_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32), "asked": _asked(batch)}
        return kept.replace(step=state.step + 1), metrics

    shardings = (state_shardings(state, mesh), None)
    options = _compiler_options(deterministic)
    if mesh.devices.flat[0].platform == "cpu":
        # An order of work that needs less memory in place of one that offers more work at a time: a seventh less.
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    return jax.jit(train_step, donate_argnums=0, out_shardings=shardings, compiler_options=options)


def _compiler_options(deterministic):
    # It also keeps XLA from timing kernels to choose among them, which may end differently in each process.
    return {"xla_gpu_deterministic_ops": True} if deterministic else {}


def check_accumulation(batch_size, accumulate, mesh):
    """Refuses micro-batches that a device's share of the global batch cannot be cut into, naming a number that fits.

    Args:
      batch_size: images of the global batch, a multiple of the devices.
      accumulate: micro-batches in it, >= 1.
      mesh: see `make_mesh`.

    Raises:
      ConfigError: `accumulate` does not divide batch_size / devices.
    """
    share = batch_size // mesh.size
    if share % accumulate:
        fitting = min((n for n in range(1, share + 1) if share % n == 0), key=lambda n: abs(n - accumulate))
        raise ConfigError(
            f"accumulate {accumulate} does not divide the {share} images that each of {mesh.size} devices gets of "
            f"batch_size {batch_size}; {fitting} does"
        )


def run_key(seed, mesh):
    """The key of all draws of a run, on every device of a mesh."""
    return jax.jit(lambda key: key, out_shardings=replicated(mesh))(jax.random.key(seed))


def step_keys(key):
    """(key of the augmentation, key of dropout and drop path) of a run; steps and positions are folded into them."""
    return jax.random.split(key)


def make_eval_step(model, normalize, *, deterministic=False):
    """Compiles (variables, batch, asked) -> sums over the batch: "loss", "top1", "top5" and "count", float32 scalars.

    Also "asked", the greatest of the batch's and of what the step before gave. It makes each step wait for the one
    before: on CPUs, steps that run side by side in several processes may each wait for another's collectives.

    Args:
      model: linen module, called as model(images, train=False).
      normalize: uint8 images -> float32.
      deterministic: see `make_train_step`.

    Returns:
      A jitted function; its batch also holds "weight" float32 [B], 0 for the images that only fill the batch up.
    """

    def eval_step(variables, batch, asked=0.0):
        logits = model.apply(variables, normalize(batch["image"]), train=False)
        weight = batch["weight"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        top1, top5 = _hits(logits, batch["label"])
        sums = {"loss": loss, "top1": top1, "top5": top5}
        sums = {name: jnp.where(weight > 0, value * weight, 0.0).sum() for name, value in sums.items()}
        return sums | {"count": weight.sum(), "asked": jnp.maximum(asked, _asked(batch))}

    return jax.jit(eval_step, compiler_options=_compiler_options(deterministic))


def make_predict_step(model, normalize, mesh, *, method="__call__"):
    """Compiles (variables, batch) -> what a model makes of the images, whole in every process.

    Args:
      model: linen module, called as model.METHOD(images, train=False).
      normalize: uint8 images -> float32.
      mesh: see `make_mesh`; the batch is split over it.
      method: name of the module's method.

    Returns:
      A jitted function. Its batch is {"image": uint8 [B, H, W, 3], ...}; it gives back the batch with float32 "outputs"
      [B, ...] in the images' place, every array on all devices. See `predictions`.
    """

    def predict_step(variables, batch):
        images = normalize(batch["image"])
        outputs = model.apply(variables, images, train=False, method=method)
        outputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)  # of Tokens, too
        return {name: rows for name, rows in batch.items() if name != "image"} | {"outputs": outputs}

    return jax.jit(predict_step, out_shardings=replicated(mesh))


def predictions(step, variables, batches):
    """Yields what a step of `make_predict_step` gives for each batch, as dicts of NumPy arrays.

    One step runs at a time, for on CPUs those of several processes would wait for one another's collectives. The next
    batch is fetched and sent meanwhile.
    """
    running = None
    for batch in batches:
        done = jax.block_until_ready(running)
        running = step(variables, batch)
        if done is not None:
            yield jax.device_get(done)
    if running is not None:
        yield jax.device_get(running)


def _forward_backward(model, variables, images, targets, key):
    """(gradients, {"batch_stats": updated} or {}, metrics) of the mean cross entropy over these images."""

    def loss_and_outputs(params):
        own = {**variables, "params": params}
        logits, statistics = model.apply(own, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, statistics)

    (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_and_outputs, has_aux=True)(variables["params"])
    top1, top5 = (hits.mean() for hits in _hits(logits, targets.argmax(axis=-1)))
    return gradients, statistics, {"loss": loss, "top1": top1, "top5": top5}


def _split(batch, count, mesh):
    """Cuts the arrays [B, ...] of a batch into micro-batches, [count, B / count, ...].

    Micro-batch a takes the rows i * count + a, because each device holds neighbouring rows: it works on the same ones,
    and none travel.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))

    def split(rows):
        rows = jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0)
        return jax.lax.with_sharding_constraint(rows, sharding)

    return jax.tree.map(split, batch)


def _accumulated(model, variables, micro_batches, key):
    """As `_forward_backward`, over micro-batches in turn: mean gradients and metrics, the last one's statistics."""
    params = variables["params"]
    count = len(micro_batches[0])

    def work_off(carry, numbered):
        statistics, sums = carry
        number, (images, targets) = numbered
        own = {"params": params, **statistics}
        gradients, statistics, metrics = _forward_backward(model, own, images, targets, jax.random.fold_in(key, number))
        return (statistics, jax.tree.map(jnp.add, sums, (gradients, metrics))), None

    statistics = {name: variables[name] for name in variables if name != "params"}
    zeros = jax.tree.map(jnp.zeros_like, params), dict.fromkeys(("loss", "top1", "top5"), jnp.zeros(()))
    (statistics, sums), _ = jax.lax.scan(work_off, (statistics, zeros), (jnp.arange(count), micro_batches))
    gradients, metrics = jax.tree.map(lambda total: total / count, sums)
    return gradients, statistics, metrics


def _update_if(finite, update, state):
    """update(state), or, if not `finite`, the state as it is.

    On CPUs in a branch: there, each array's new value takes the old one's place in one pass. Selected, XLA copies
    parameters and moments first, in four times the time. GPUs would have to ask the host for the branch.
    """

    def branch(state):
        return jax.lax.cond(finite, update, lambda state: state, state)

    def select(state):
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(state), state)

    return jax.lax.platform_dependent(state, cpu=branch, default=select)


def _update(optimizer, gradients, statistics, ema_decay, state):
    """The state after an update with these gradients and BatchNorm statistics; its step is not counted up."""
    params = state.variables["params"]
    changes, optimizer_state = optimizer.update(gradients, state.optimizer, params)
    variables = {"params": optax.apply_updates(params, changes), **statistics}
    ema = state.ema
    if ema is not None:
        ema = jax.tree.map(lambda mean, new: ema_decay * mean + (1.0 - ema_decay) * new, ema, variables)
    return state.replace(variables=variables, optimizer=optimizer_state, ema=ema)


def _asked(batch):
    return batch["asked"].max().astype(jnp.float32) if "asked" in batch else jnp.float32(0)


def _hits(logits, labels):
    """Whether the label is the first, and among the first five: logits [B, classes], labels [B] -> 2 x float32 [B].

    An image with a NaN among its logits is a miss: top_k takes NaN for the greatest of all numbers.
    """
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))  # [B, 5]
    numbers = ~jnp.isnan(logits).any(axis=-1, keepdims=True)  # [B, 1]
    matches = ((ranked == labels[:, None]) & numbers).astype(jnp.float32)
    return matches[:, 0], matches.sum(axis=-1)
