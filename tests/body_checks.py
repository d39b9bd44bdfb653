"""What every body must do, on a tiny model: training draws, rematerialisation, bfloat16, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model


def noise(model, mean=0.0, spread=0.4):
    """Variables of noise around `mean`, which need not be compiled; scales and variances are at least 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        drawn = spread * rng.normal(size=leaf.shape)
        return np.asarray(1 + drawn**2 if path[-1].key in ("scale", "var") else mean + drawn, leaf.dtype)

    inputs = jnp.zeros((1, *model.image_size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def first_stage(options):
    """Options of a body with its first stage alone, which compiles in half the time; an embedding's stay."""
    return {
        name: value[:1] if isinstance(value, tuple) and not name.startswith("stem") else value
        for name, value in options.items()
    }


def images(*size, count=2, seed=0):
    """Noise [count, *size, 3]."""
    return np.random.default_rng(seed).normal(size=(count, *size, 3)).astype(np.float32)


def check_training(model, variables, inputs):
    """Rates act in training alone, BatchNorm's statistics follow, and remat changes no logit, gradient or statistic.

    Args:
      model: with a drop path of almost 1.
      variables: of `noise`.
      inputs: images.
    """

    def train(model, variables, key):
        def loss(params):
            given, new = model.apply(
                {**variables, "params": params}, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return (given**2).sum(), (given, new)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    plain, again = (jax.jit(functools.partial(train, model.clone(remat=remat))) for remat in (False, True))
    one, other = plain(variables, jax.random.key(1)), plain(variables, jax.random.key(2))
    assert np.isfinite(one[0][1][0]).all() and not np.allclose(one[0][1][0], other[0][1][0])
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), variables, {**variables, **one[0][1][1]})
    assert all(jax.tree.leaves(changed.get("batch_stats", {})))
    leaves = jax.tree.leaves(one)
    largest = max(np.abs(leaf).max() for leaf in leaves)  # convolutions before a BatchNorm have biases without effect
    for left, right in zip(leaves, jax.tree.leaves(again(variables, jax.random.key(1))), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5 * largest)
    # Without a key whatever drew would raise.
    jax.eval_shape(lambda variables: model.apply(variables, inputs, train=False), variables)


def check_bfloat16(model, variables, inputs, grid, leading=0):
    """A bfloat16 model's logits are float32, its tokens bfloat16; all are finite, and as many as the model says."""
    assert model.grid(*inputs.shape[1:3]) == grid

    @jax.jit
    def run(variables, inputs):
        kept = {"capture_intermediates": lambda _, method: method == "tokens", "mutable": "intermediates"}
        logits, state = model.apply(variables, inputs, train=False, **kept)
        return logits, state["intermediates"]["tokens"][0]

    logits, tokens = run(variables, inputs)
    assert logits.dtype == jnp.float32 and tokens.values.dtype == jnp.bfloat16
    assert tokens.grid == grid and tokens.leading == leading
    assert tokens.shape[:2] == (len(inputs), leading + grid[0] * grid[1])
    assert np.isfinite(logits).all() and np.isfinite(tokens.values.astype(np.float32)).all()


def check_refused(name, message, **options):
    """`create_model` refuses a model in one line that has the message."""
    with pytest.raises(ConfigError) as error:
        create_model(name, num_classes=3, **{"image_size": 32, **options})
    assert message in str(error.value) and "\n" not in str(error.value)
