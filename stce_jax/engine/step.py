"""One training step and one evaluation step, jitted over the mesh.

Neither knows a model or a dataset: modules and the augment function are passed in.

Shape letters: B global batch, H W image height and width.
"""

import jax
import jax.numpy as jnp
import optax

from stce_jax.engine.mesh import state_shardings


def make_train_step(model, optimizer, augment, *, seed, ema_decay, state, mesh):
    """Compiles (state, batch) -> (state, metrics). The old state is donated.

    Every draw comes from (seed, step). The loss is the batch's mean cross entropy with soft targets; BatchNorm's
    statistics are the global batch's, because the step is written for the global batch and XLA splits it.

    Args:
      model: linen module, called as model(images, train=True) with an rng "dropout".
      optimizer: optax GradientTransformation.
      augment: (key, step, images uint8, labels) -> (images float32, targets [B, classes]).
      seed: root of all draws.
      ema_decay: of the moving average of parameters and statistics, if the state keeps one.
      state: a TrainState, for its shardings.
      mesh: see `make_mesh`.

    Returns:
      A jitted function; its batch is {"image": uint8 [B, H, W, 3], "label": int32 [B]}, its metrics are float32 scalars
      "loss", "top1" and "top5" (fractions, against each image's heaviest target).
    """

    def train_step(state, batch):
        augment_key, dropout_key = step_keys(seed)
        images, targets = augment(augment_key, state.step, batch["image"], batch["label"])
        rngs = {"dropout": jax.random.fold_in(dropout_key, state.step)}

        def loss_and_outputs(params):
            variables = {**state.variables, "params": params}
            logits, updates = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
            return optax.softmax_cross_entropy(logits, targets).mean(), (logits, updates)

        params = state.variables["params"]
        (loss, (logits, updates)), gradients = jax.value_and_grad(loss_and_outputs, has_aux=True)(params)
        changes, optimizer_state = optimizer.update(gradients, state.optimizer, params)
        variables = {"params": optax.apply_updates(params, changes), **updates}
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(lambda mean, new: ema_decay * mean + (1.0 - ema_decay) * new, ema, variables)
        top1, top5 = (hits.mean() for hits in _hits(logits, targets.argmax(axis=-1)))
        new_state = state.replace(step=state.step + 1, variables=variables, optimizer=optimizer_state, ema=ema)
        return new_state, {"loss": loss, "top1": top1, "top5": top5}

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings(state, mesh), None))


def step_keys(seed):
    """(key of the augmentation, key of dropout and drop path) of a run; steps and positions are folded into them."""
    return jax.random.split(jax.random.key(seed))


def make_eval_step(model, normalize):
    """Compiles (variables, batch) -> sums over the batch: "loss", "top1", "top5" and "count", float32 scalars.

    Args:
      model: linen module, called as model(images, train=False).
      normalize: uint8 images -> float32.

    Returns:
      A jitted function; its batch also holds "weight" float32 [B], 0 for the images that only fill the batch up.
    """

    def eval_step(variables, batch):
        logits = model.apply(variables, normalize(batch["image"]), train=False)
        weight = batch["weight"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        top1, top5 = _hits(logits, batch["label"])
        sums = {"loss": loss, "top1": top1, "top5": top5}
        sums = {name: jnp.where(weight > 0, value * weight, 0.0).sum() for name, value in sums.items()}
        return sums | {"count": weight.sum()}

    return jax.jit(eval_step)


def _hits(logits, labels):
    """Whether the label is the first, and among the first five: logits [B, classes], labels [B] -> 2 x float32 [B].

    An image with a NaN among its logits is a miss: top_k takes NaN for the greatest of all numbers.
    """
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))  # [B, 5]
    numbers = ~jnp.isnan(logits).any(axis=-1, keepdims=True)  # [B, 1]
    matches = ((ranked == labels[:, None]) & numbers).astype(jnp.float32)
    return matches[:, 0], matches.sum(axis=-1)
