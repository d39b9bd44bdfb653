"""Muon, Lion, schedule-free AdamW and layer-wise rates against formulas in plain NumPy, float64, over several steps."""

import jax
import numpy as np
import optax
import pytest
from optax import contrib

from stce_jax.recipe.muon import hidden_matrices
from stce_jax.recipe.optimizers import make_optimizer
from stce_jax.recipe.parameters import layer_rates

OPTIONS = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "clip_norm": 0.0, "muon_momentum": 0.95}
SHAPES = {
    "position_embedding": (1, 5, 4),
    "embedding": {"projection": {"kernel": (6, 4), "bias": (4,)}},
    "blocks_0": {
        "attention": {
            "qkv": {"kernel": (4, 12), "bias": (12,)},
            "query": {"kernel": (4, 2, 3)},  # of flax's attention: two heads
            "out": {"kernel": (2, 3, 4)},
        },
        "local": {"kernel": (3, 3, 4, 5)},
        "depthwise": {"kernel": (3, 3, 1, 4)},
        "pool": {"kernel": (9, 1)},
        "norm": {"scale": (4,)},
    },
    "halving_0": {"projection": {"kernel": (8, 4)}},
    "blocks": {"mlp": {"in": {"kernel": (3, 4, 6), "bias": (3, 6)}}, "attention": {"qkv": {"kernel": (3, 4, 12)}}},
    "distillation_head": {"kernel": (4, 7)},
    "head": {"kernel": (4, 7), "bias": (7,)},
}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def named(tree):
    """{"blocks_0/local/kernel": array in float64, ...}"""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def schedule(step):
    return 1e-2 * (1.0 + step) / 8


def assert_close(actual, expected, step, **tolerance):
    for name, leaf in named(actual).items():
        np.testing.assert_allclose(leaf, expected[name], err_msg=f"{name} after step {step + 1}", **tolerance)


def run(optimizer, params, steps, gradient_of=lambda step, at: random_tree(1 + step)):
    """Yields (step, parameters, gradients) of an optimizer's steps."""
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(steps):
        at = optimizer.gradient_point(params, state) if hasattr(optimizer, "gradient_point") else params
        gradients = gradient_of(step, at)
        changes, state = update(gradients, state, params)
        params = optax.apply_updates(params, changes)
        yield step, params, gradients


# --- Lion


def test_lion_equals_numpy():
    params = random_tree(0)
    expected, momentum = named(params), {name: 0.0 for name in named(params)}
    for step, found, gradients in run(make_optimizer(schedule, name="lion", **OPTIONS), params, 6):
        for name, gradient in named(gradients).items():
            sign = np.sign(0.9 * momentum[name] + 0.1 * gradient)
            momentum[name] = 0.99 * momentum[name] + 0.01 * gradient
            decay = 0.05 if name.endswith("kernel") else 0.0
            expected[name] = expected[name] - schedule(step) * (sign + decay * expected[name])
        assert_close(found, expected, step, rtol=1e-5, atol=1e-6)


# --- Muon

# Path -> the matrices in a kernel, as lists of (function of the kernel -> one matrix [I, O], its place).
MATRICES = {
    "blocks_0/attention/qkv/kernel": [np.s_[:, 0:4], np.s_[:, 4:8], np.s_[:, 8:12]],
    "blocks_0/attention/query/kernel": [np.s_[:, :]],
    "blocks_0/attention/out/kernel": [np.s_[:, :]],
    "blocks_0/local/kernel": [np.s_[:, :]],
    "halving_0/projection/kernel": [np.s_[:, :]],
    "blocks/mlp/in/kernel": [np.s_[layer] for layer in range(3)],
    "blocks/attention/qkv/kernel": [
        np.s_[layer, :, 4 * part : 4 * part + 4] for layer in range(3) for part in range(3)
    ],
}
AS_TWO_AXES = {
    "blocks_0/attention/query/kernel": (4, 6),
    "blocks_0/attention/out/kernel": (6, 4),
    "blocks_0/local/kernel": (36, 5),
}


def orthogonal(matrix):
    """Five steps of Jordan's quintic, on the side where the product is smaller."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    matrix = matrix / (np.sqrt((matrix**2).sum()) + 1e-8)
    for _ in range(5):
        product = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * product + 2.0315 * product @ product) @ matrix
    return matrix


class NumpyMuon:
    def __init__(self, params):
        self.params, self.count = named(params), 0
        self.first = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}
        self.second = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}

    def step(self, gradients, rate):
        self.count += 1
        for name, gradient in named(gradients).items():
            direction = self.on_matrix(name, gradient) if name in MATRICES else self.by_adam(name, gradient)
            decay = 0.05 if name.endswith("kernel") else 0.0
            self.params[name] = self.params[name] - rate * (direction + decay * self.params[name])

    def on_matrix(self, name, gradient):
        self.first[name] = 0.95 * self.first[name] + 0.05 * gradient
        ahead = 0.95 * self.first[name] / (1 - 0.95 ** (self.count + 1))  # Nesterov
        ahead = ahead + 0.05 * gradient / (1 - 0.95**self.count)
        ahead = ahead.reshape(AS_TWO_AXES.get(name, ahead.shape))
        direction = np.zeros_like(ahead)
        for place in MATRICES[name]:
            direction[place] = 0.2 * np.sqrt(max(ahead[place].shape)) * orthogonal(ahead[place])
        return direction.reshape(gradient.shape)

    def by_adam(self, name, gradient):
        self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
        self.second[name] = 0.99 * self.second[name] + 0.01 * gradient**2
        first, second = self.first[name] / (1 - 0.9**self.count), self.second[name] / (1 - 0.99**self.count)
        return first / (np.sqrt(second) + 1e-8)


def test_muon_equals_numpy_on_matrices_and_adamw_on_the_rest():
    params = random_tree(0)
    reference = NumpyMuon(params)
    cut = {name for name, leaf in named(params).items() if hidden_matrices(tuple(name.split("/")), leaf.shape)}
    assert cut == set(MATRICES)
    for step, found, gradients in run(make_optimizer(schedule, name="muon", **OPTIONS), params, 5):
        reference.step(gradients, schedule(step))
        assert_close(found, reference.params, step, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_an_update_of_muon_is_as_large_as_adamws():
    """Of a matrix with like singular values: entries of 0.2 in the root of their mean square, whatever its shape."""
    for shape in ((64, 64), (32, 128), (128, 32)):
        rng = np.random.default_rng(0)
        longer, shorter = max(shape), min(shape)
        basis = np.linalg.qr(rng.normal(size=(longer, longer)))[0][:, :shorter].astype(np.float32)
        params = {"blocks_0": {"kernel": basis if shape == basis.shape else basis.T}}
        optimizer = make_optimizer(1.0, name="muon", **OPTIONS | {"weight_decay": 0.0})
        changes, _ = optimizer.update(params, optimizer.init(params), params)
        size = float(np.sqrt(np.mean(np.square(changes["blocks_0"]["kernel"]))))
        assert 0.12 < size < 0.25, f"{shape}: {size}"  # Jordan's coefficients end between 0.7 and 1.2, not at 1


def test_what_lies_head_by_head_is_one_matrix():
    path, shape = ("blocks_0", "attention", "qkv", "kernel"), (4, 12)
    assert hidden_matrices(path, shape) == (1, 4, 3, 4)
    assert hidden_matrices(path, shape, fused={}) == (1, 4, 1, 12)
    assert hidden_matrices(path, (4, 13)) == (1, 4, 1, 13)


# --- schedule-free AdamW


def pulled(step, at):
    """Gradients that depend on where they are taken."""
    noise = random_tree(1 + step)
    return jax.tree.map(lambda leaf, other: np.asarray(0.5 * leaf + 0.3 * other, np.float32), at, noise)


def test_schedule_free_adamw_equals_numpy():
    """x is the mean of all z, weighted by the squares of the largest rate so far: all of them kept, and averaged."""
    params = random_tree(0)
    z, second = named(params), {name: 0.0 for name in named(params)}
    x, kept, weights = named(params), [], []
    optimizer = make_optimizer(schedule, name="schedule_free_adamw", **OPTIONS | {"clip_norm": 3.0})
    for step, found, gradients in run(optimizer, params, 6, pulled):
        y = {name: 0.9 * x[name] + 0.1 * z[name] for name in x}
        expected = {name: 0.5 * y[name] + 0.3 * leaf for name, leaf in named(random_tree(1 + step)).items()}
        assert_close(gradients, expected, step, rtol=1e-4, atol=1e-5)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in expected.values()))
        assert norm > 3, "the test's gradients must be clipped"
        weights.append(schedule(step) ** 2)  # the rate rises
        for name in z:
            gradient = expected[name] * 3 / norm
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            direction = gradient / (np.sqrt(second[name] / (1 - 0.99 ** (step + 1))) + 1e-8)
            decay = 0.05 if name.endswith("kernel") else 0.0
            z[name] = z[name] - schedule(step) * (direction + decay * y[name])
        kept.append(dict(z))
        x = {name: np.average([one[name] for one in kept], axis=0, weights=weights) for name in z}
        assert_close(found, x, step, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_schedule_free_adamw_is_optaxs_seen_from_x():
    params = random_tree(0)
    theirs = contrib.schedule_free_adamw(1e-2, b1=0.8, b2=0.99)
    state, y = theirs.init(params), params
    ours = make_optimizer(1e-2, name="schedule_free_adamw", **OPTIONS | {"weight_decay": 0.0, "beta1": 0.8})
    for step, found, gradients in run(ours, params, 5, pulled):
        assert_close(pulled(step, y), named(gradients), step, rtol=1e-4, atol=1e-5)
        changes, state = theirs.update(pulled(step, y), state, y)
        y = optax.apply_updates(y, changes)
        assert_close(found, named(contrib.schedule_free_eval_params(state, y)), step, rtol=1e-4, atol=1e-5)


def test_a_first_step_without_a_learning_rate_moves_nothing():
    """As with a warm-up from 0: no weight is a number divided by zero."""
    params = random_tree(0)
    optimizer = make_optimizer(lambda step: 0.1 * step, name="schedule_free_adamw", **OPTIONS)
    (_, first, _), (_, second, _) = run(optimizer, params, 2)
    assert_close(first, named(params), 0, rtol=0, atol=0)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(second))


# --- layer-wise rates


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "schedule_free_adamw"])
def test_layer_wise_rates_multiply_the_learning_rate_of_every_optimizer(name):
    """A step with rates is one whose learning rate is as much smaller, parameter by parameter."""

    def layer_of(path, shape):
        if path[0] == "blocks":
            return np.arange(3).reshape(-1, *[1] * (len(shape) - 1))
        return {"embedding": 0, "blocks_0": 1}.get(path[0], 3)

    factors = layer_rates(0.5, layer_of, 3)
    params = random_tree(0)
    whole, part = (make_optimizer(schedule, name=name, rates=rates, **OPTIONS) for rates in (None, factors))
    (_, plain, _), (_, scaled, _) = next(run(whole, params, 1)), next(run(part, params, 1))
    for path, leaf in named(params).items():
        words = tuple(path.split("/"))
        expected = (named(plain)[path] - leaf) * factors(words, leaf.shape)
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(named(scaled)[path] - leaf, expected, rtol=1e-3, atol=1e-6, err_msg=path)
    stacked = factors(("blocks", "mlp", "in", "kernel"), (3, 4, 6))
    np.testing.assert_allclose(stacked.ravel(), [0.125, 0.25, 0.5])
    assert factors(("head", "kernel"), (4, 7)) == 1


# --- memory


@pytest.mark.parametrize("name, kept", [("adamw", 2), ("lion", 1), ("schedule_free_adamw", 2), ("muon", None)])
def test_numbers_kept_for_each_parameter(name, kept):
    """Those that docs/training.md gives; a few numbers of all parameters together come on top."""
    params = random_tree(0)
    sizes = {path: leaf.size for path, leaf in named(params).items()}
    matrices = sum(sizes[path] for path in MATRICES)
    expected = kept * sum(sizes.values()) if kept else 2 * sum(sizes.values()) - matrices
    state = jax.eval_shape(make_optimizer(schedule, name=name, **OPTIONS).init, params)
    assert 0 < sum(leaf.size for leaf in jax.tree.leaves(state)) - expected < 10
