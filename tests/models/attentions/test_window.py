"""Window attention against attention of a whole map under a mask, written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.attentions.window import WindowAttention
from stce_jax.models.ops import attention
from stce_jax.models.ops.windows import from_windows, relative_bias, shift_mask, to_windows

HEADS, WIDTH = 2, 8


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def dense(features, params, window, shift):
    """Every place attends to the whole padded map; where two lie in no common window, their logit is minus infinity."""
    batch, height, width, channels = features.shape
    rolled = np.roll(features, [-one for one in shift], axis=(1, 2))
    below, right = (-side % wide for side, wide in zip((height, width), window, strict=True))
    padded = np.pad(rolled, ((0, 0), (0, below), (0, right), (0, 0)))
    rows, columns = padded.shape[1:3]
    row, column = (axis.reshape(-1) for axis in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    values = padded.reshape(batch, rows * columns, channels)
    qkv = values @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    query, key, value = (part.reshape(batch, -1, HEADS, channels // HEADS) for part in np.split(qkv, 3, axis=-1))
    logits = np.einsum("bmae,bnae->bamn", query, key) / np.sqrt(channels // HEADS)
    for one in range(rows * columns):
        for two in range(rows * columns):
            down, across = row[one] - row[two], column[one] - column[two]
            places = ((row[one], row[two]), (column[one], column[two]))
            together = all(a // wide == b // wide for (a, b), wide in zip(places, window, strict=True))
            if not together:
                logits[:, :, one, two] = -np.inf
                continue
            entry = (down + window[0] - 1) * (2 * window[1] - 1) + across + window[1] - 1
            logits[:, :, one, two] += params["bias_table"][entry]
            for side, wide, moved, (a, b) in zip((rows, columns), window, shift, places, strict=True):
                if moved and a >= side - wide and (a >= side - moved) != (b >= side - moved):
                    logits[:, :, one, two] -= 100.0
    outputs = np.einsum("bamn,bnae->bmae", softmax(logits), value).reshape(batch, rows, columns, channels)
    outputs = outputs @ params["out"]["kernel"] + params["out"]["bias"]
    return np.roll(outputs[:, :height, :width], shift, axis=(1, 2))


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((8, 8), (4, 4), (0, 0)), ((8, 8), (4, 4), (2, 2)), ((6, 9), (4, 3), (2, 1)), ((5, 7), (3, 3), (2, 1))],
)
def test_windows_equal_dense_attention_under_a_mask(size, window, shift):
    module, rng = WindowAttention(HEADS, window, shift), np.random.default_rng(0)
    features = rng.normal(size=(2, *size, WIDTH))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(features)))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    found = jax.jit(module.apply)({"params": params}, jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(found, dense(features, params, window, shift), atol=2e-4)


def test_a_window_larger_than_the_map_is_one_window_of_the_map():
    module, rng = WindowAttention(HEADS, (7, 7), (3, 3)), np.random.default_rng(0)
    features = rng.normal(size=(1, 4, 4, WIDTH))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(features)))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    middle = params["bias_table"].reshape(13, 13, HEADS)[3:10, 3:10].reshape(-1, HEADS)
    found = jax.jit(module.apply)({"params": params}, jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(found, dense(features, params | {"bias_table": middle}, (4, 4), (0, 0)), atol=2e-4)


def test_windows_are_cut_row_by_row_and_put_together_again():
    features = np.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    windows = to_windows(jnp.asarray(features), (2, 3))
    np.testing.assert_array_equal(windows[1, 1].reshape(2, 3, 3), features[1, :2, 3:])
    np.testing.assert_array_equal(windows[0, 2].reshape(2, 3, 3), features[0, 2:, :3])
    np.testing.assert_array_equal(from_windows(windows, (4, 6), (2, 3)), features)


@pytest.mark.parametrize(("of", "window"), [((3, 4), (3, 4)), ((4, 3), (2, 3)), ((1, 2), (1, 2)), ((2, 2), (1, 1))])
def test_biases_and_their_gradients_are_those_of_a_gather(of, window):
    table, rng = np.random.default_rng(0).normal(size=((2 * of[0] - 1) * (2 * of[1] - 1), 2)), np.random.default_rng(1)
    row, column = (axis.reshape(-1) for axis in np.meshgrid(*map(np.arange, window), indexing="ij"))
    down, right = (place[:, None] - place[None, :] for place in (row, column))
    index = (down + of[0] - 1) * (2 * of[1] - 1) + right + of[1] - 1
    cotangent, expected = rng.normal(size=(2, *index.shape)).astype(np.float32), np.zeros_like(table)
    np.add.at(expected, index, cotangent.transpose(1, 2, 0))

    @jax.jit
    def both(table):
        bias, pull_back = jax.vjp(lambda table: relative_bias(table, of, window), table)
        return bias, pull_back(cotangent)[0]

    bias, gradient = both(jnp.asarray(table, jnp.float32))
    np.testing.assert_array_equal(bias, table.astype(np.float32)[index].transpose(2, 0, 1))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_windows_never_take_the_fused_kernel(monkeypatch):
    """Whose gradient of a bias that all images share is unknown under vmap."""

    def refuse(*_):
        raise AssertionError("the fused kernel")

    monkeypatch.setattr(attention, "has_fused_kernel", lambda width, dtype: True)
    monkeypatch.setattr(attention, "_fused", refuse)
    query = jnp.ones((2, 4, HEADS, 8), jnp.bfloat16)
    with pytest.raises(AssertionError, match="the fused kernel"):
        jax.eval_shape(attention.dot_product_attention, query, query, query)
    module = WindowAttention(HEADS, (2, 2), (1, 1), jnp.bfloat16)
    jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((2, 4, 4, WIDTH), jnp.bfloat16)))


def test_no_shift_hides_nothing_and_biases_follow_offsets():
    assert not shift_mask((4, 6), (2, 3), (0, 0)).any()
    table = np.arange(9.0)[:, None]
    bias = jax.jit(relative_bias, static_argnums=(1, 2))(jnp.asarray(table), (2, 2), (2, 2))
    assert bias.shape == (1, 4, 4) and (np.diag(bias[0]) == 4).all()
    assert bias[0, 0, 3] == 0 and bias[0, 3, 0] == 8 and bias[0, 0, 1] == 3
