"""Steps with sharpness-aware gradients, frozen parts, averaging optimizers and an average by share: against steps that
are written by hand, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from stce_jax.models.conv_layers import ConvModule
from stce_jax.recipe.averages import power_decay
from stce_jax.recipe.optimizers import make_optimizer
from stce_jax.recipe.parameters import is_frozen
from stce_jax.training import assemble as runs
from stce_jax.training import optimization
from stce_jax.training.frozen import train_only
from stce_jax.training.mesh import batch_sharding, make_mesh, state_shardings
from stce_jax.training.state import abstract_variables, init_state
from stce_jax.training.step import make_train_step, run_key
from stce_jax.workdir.config import load_config

SEED, CLASSES, SIZE, BATCH, RHO = 3, 5, 8, 16, 0.5
OPTIONS = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-5, "clip_norm": 1.0, "muon_momentum": 0.9}
pytestmark = pytest.mark.usefixtures("everything_is_split")


class Small(nn.Module):
    """Both kinds of BatchNorm, dropout, and the names that optimizers go by."""

    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        features = ConvModule(4, 2, dtype=self.dtype, name="embedding")(images.astype(self.dtype), train=train)
        # No parameter's gradient is zero but for rounding, which a sign or a division would blow up.
        features = nn.relu(features).reshape(len(features), -1)
        features = nn.Dense(16, use_bias=False, dtype=self.dtype, name="blocks_0")(features)
        features = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, name="norm")(features)
        features = nn.Dropout(self.dropout)(features, deterministic=not train)
        return nn.Dense(CLASSES, dtype=self.dtype, name="head")(features).astype(jnp.float32)


def augment(key, step, images, labels):
    noise = jax.random.normal(jax.random.fold_in(key, step), images.shape)
    return images / 255.0 + 0.1 * noise, jax.nn.one_hot(labels, CLASSES)


def host(tree):
    return jax.tree.map(np.array, tree)


def make_batch(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, BATCH).astype(np.int32)}


def sgd(rate=0.1):
    return optax.sgd(rate)


class Run:
    """A training step on some devices, and the state that it has brought about."""

    def __init__(self, optimizer, *, model=None, devices=1, fsdp=1, ema_decay=0.0, patterns=(), start=None, **options):
        frozen = is_frozen(patterns) if patterns else None
        self.model, self.mesh = model or Small(), make_mesh(fsdp, jax.devices()[:devices])
        self.optimizer = train_only(optimizer, frozen)
        state = init_state(
            self.model, self.optimizer, seed=0, image_size=SIZE, with_ema=bool(ema_decay), mesh=self.mesh
        )
        self.state = jax.device_put(start, state_shardings(state, self.mesh)) if start else state
        self.key = run_key(SEED, self.mesh)
        own = {"ema_decay": ema_decay, "frozen": frozen, "state": state, "mesh": self.mesh}
        self.step = make_train_step(self.model, self.optimizer, augment, **own, **options)

    def go(self, steps, change=lambda batch: batch):
        metrics = []
        for _ in range(steps):
            batch = change(make_batch(int(self.state.step)))
            batch = jax.device_put(batch, batch_sharding(self.mesh))
            self.state, values = self.step(self.state, batch, self.key)
            metrics.append({name: float(value) for name, value in values.items()})
        return metrics


def assert_close(actual, expected, what, **tolerance):
    for (path, left), right in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, err_msg=f"{what}: {jax.tree_util.keystr(path)}", **tolerance)


def bits(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(tree)}


@jax.jit
def pass_by_hand(variables, params, images, targets, key):
    """(loss, updated statistics, gradients)."""

    def loss_of(params):
        merged = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, left = Small().apply(merged, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return -(targets * jax.nn.log_softmax(logits)).sum(axis=1).mean(), left["batch_stats"]

    (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, statistics, gradients


def gradients_by_hand(variables, params, step, accumulate):
    """(loss, updated statistics, gradients) of a batch in micro-batches, in turn: rows i * count + a are of a."""
    augment_key, dropout_key = jax.random.split(jax.random.key(SEED))
    batch = make_batch(step)
    images, targets = augment(augment_key, step, batch["image"], batch["label"])
    key, losses, total = jax.random.fold_in(dropout_key, step), [], None
    for number in range(accumulate):
        own = key if accumulate == 1 else jax.random.fold_in(key, number)
        rows = slice(number, None, accumulate)
        loss, statistics, gradients = pass_by_hand(variables, params, images[rows], targets[rows], own)
        variables = {**variables, "batch_stats": statistics}
        total = gradients if total is None else jax.tree.map(jnp.add, total, gradients)
        losses.append(float(loss))
    return np.mean(losses), statistics, jax.tree.map(lambda leaf: leaf / accumulate, total)


# --- sharpness-aware


@pytest.mark.slow
@pytest.mark.parametrize("accumulate, devices, fsdp", [(1, 8, 8), (2, 1, 1), (2, 8, 2)])
def test_a_sharpness_aware_step_is_two_passes_by_hand(accumulate, devices, fsdp):
    """Loss and statistics of the first, gradients of the second; the same draws in both."""
    run = Run(sgd(), sam_rho=RHO, accumulate=accumulate, devices=devices, fsdp=fsdp)
    run.go(1)
    before = host(run.state)
    [metrics] = run.go(1)
    params = before.variables["params"]
    loss, statistics, first = gradients_by_hand(before.variables, params, 1, accumulate)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(first)))
    climbed = jax.tree.map(lambda param, gradient: param + RHO * gradient / norm, params, first)
    _, _, second = gradients_by_hand(before.variables, climbed, 1, accumulate)
    expected = jax.tree.map(lambda param, gradient: param - 0.1 * gradient, params, second)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    size = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(second)))
    assert metrics["gradient_norm"] == pytest.approx(float(size), rel=1e-4)
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, first, second))
    assert apart > 0.05 * norm, "the test cannot tell the passes from each other"
    assert_close(run.state.variables["params"], expected, "parameters", rtol=1e-4, atol=1e-5)
    assert_close(run.state.variables["batch_stats"], statistics, "statistics", rtol=1e-4, atol=1e-5)


class Cliff(nn.Module):
    """Finite where it begins, and nowhere else."""

    @nn.compact
    def __call__(self, images, *, train):
        weight = self.param("kernel", nn.initializers.ones, (CLASSES,))
        broken = jnp.where(jnp.abs(weight[0] - 1.0) > 1e-3, jnp.nan, 0.0)
        return images.mean(axis=(1, 2, 3))[:, None] * weight + broken


@pytest.mark.slow
def test_a_second_pass_that_is_not_finite_changes_nothing():
    plain = Run(sgd(1e-9), model=Cliff())
    assert plain.go(1)[0]["skipped"] == 0
    run = Run(optax.sgd(1e-9, momentum=0.9), model=Cliff(), sam_rho=RHO, ema_decay=0.9)
    before = bits(run.state.replace(step=1))
    [metrics] = run.go(1)
    assert metrics["skipped"] == 1 and np.isfinite(metrics["loss"]) and not np.isfinite(metrics["gradient_norm"])
    assert bits(run.state.replace(step=1)) == before


# --- frozen parts


def frozen_and_trained(tree, patterns):
    frozen = is_frozen(patterns)
    found = {True: {}, False: {}}
    for path, leaf in jax.tree.leaves_with_path(tree):
        names = tuple(key.key for key in path)
        found[frozen(names[1:])]["/".join(names)] = np.asarray(leaf)
    return found[True], found[False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "patterns, options",
    [
        (("embedding", "norm", "blocks"), {}),
        (("embedding",), {"accumulate": 2, "sam_rho": RHO, "devices": 8, "fsdp": 2}),
    ],
    ids=str,
)
def test_frozen_parts_stay_as_they_are_to_the_bit(patterns, options):
    optimizer = make_optimizer(1e-2, **OPTIONS)
    start = host(Run(optimizer, patterns=patterns, ema_decay=0.9).state)
    for tree in (start.variables, start.ema):
        tree["params"]["embedding"]["convolution"]["bias"][:] = -0.0  # a sum with 0 would lose the sign
        tree["batch_stats"]["embedding"]["norm"]["mean"][:] = 0.3
    run = Run(optimizer, patterns=patterns, ema_decay=0.9, start=start, **options)
    metrics = run.go(3)
    assert [values["skipped"] for values in metrics] == [0, 0, 0]
    for what in ("variables", "ema"):
        kept, changed = frozen_and_trained(getattr(run.state, what), patterns)
        before, old = frozen_and_trained(getattr(start, what), patterns)
        assert {name: leaf.tobytes() for name, leaf in kept.items()} == {k: v.tobytes() for k, v in before.items()}
        assert not [name for name in changed if np.array_equal(changed[name], old[name])], what
        assert kept.keys() >= {"params/embedding/norm/scale", "batch_stats/embedding/norm/var"}
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(run.state.optimizer)]
    assert not [name for name in names if "embedding" in name] and [name for name in names if "head" in name]


@pytest.mark.slow
def test_a_frozen_batch_norm_is_that_of_evaluation():
    """All but the head is frozen: training then sees the features of evaluation, and the head alone has gradients."""
    patterns = ("embedding", "blocks", "norm")
    run = Run(sgd(), model=Small(dropout=0.0), patterns=patterns)
    before = host(run.state)
    [metrics] = run.go(1)
    batch, (augment_key, _) = make_batch(0), jax.random.split(jax.random.key(SEED))
    images, targets = augment(augment_key, 0, batch["image"], batch["label"])

    def loss_of(head):
        variables = {**before.variables, "params": {**before.variables["params"], "head": head}}
        logits = Small(dropout=0.0).apply(variables, images, train=False)
        return -(targets * jax.nn.log_softmax(logits)).sum(axis=1).mean()

    loss, gradient = jax.value_and_grad(loss_of)(before.variables["params"]["head"])
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    expected = jax.tree.map(lambda param, one: param - 0.1 * one, before.variables["params"]["head"], gradient)
    assert_close(run.state.variables["params"]["head"], expected, "head", rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_is_frozen_costs_no_backward_pass():
    costs = []
    for patterns in ((), ("embedding", "blocks", "norm")):
        run = Run(sgd(), patterns=patterns)
        batch = jax.device_put(make_batch(0), batch_sharding(run.mesh))
        costs.append(run.step.lower(run.state, batch, run.key).compile().cost_analysis()["flops"])
    assert costs[1] < 0.75 * costs[0]


# --- optimizers


@pytest.mark.slow
def test_gradients_of_schedule_free_learning_are_taken_between_average_and_iterate():
    run = Run(make_optimizer(1e-2, name="schedule_free_adamw", **OPTIONS), model=Small(dropout=0.5))
    run.go(2)
    before = host(run.state)
    x, z = before.variables["params"], before.optimizer.z
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (x, z)), strict=True)) > 1e-3
    [metrics] = run.go(1)
    y = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, x, z)
    loss, statistics, gradients = gradients_by_hand(before.variables, y, 2, 1)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
    changes, state = run.optimizer.update(gradients, before.optimizer, x)
    assert_close(run.state.variables["params"], optax.apply_updates(x, changes), "x", rtol=1e-4, atol=1e-5)
    assert_close(run.state.optimizer.z, state.z, "z", rtol=1e-4, atol=1e-5)
    assert_close(run.state.variables["batch_stats"], statistics, "statistics at y", rtol=1e-4, atol=1e-5)


# AdamW's is in test_step.
OTHERS = [("lion", {}), ("muon", {"sam_rho": RHO, "accumulate": 2}), ("schedule_free_adamw", {"accumulate": 2})]


@pytest.mark.slow
@pytest.mark.parametrize("name, options", OTHERS, ids=str)
def test_every_optimizer_trains_alike_on_eight_devices_and_its_state_is_split(name, options):
    """Muon's rounding is larger: five steps of Newton-Schulz multiply what is small in a matrix by hundreds."""
    optimizer = make_optimizer(lambda step: 1e-2 / (1.0 + step), name=name, **OPTIONS)
    one, eight = Run(optimizer, **options), Run(optimizer, devices=8, fsdp=8, **options)
    for run in (one, eight):
        run.metrics = run.go(4)
    losses = [[values["loss"] for values in run.metrics] for run in (one, eight)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert_close(eight.state.variables, host(one.state.variables), name, rtol=1e-2, atol=1e-3)
    big = [leaf for leaf in jax.tree.leaves(eight.state.optimizer) if leaf.size >= 64 and max(leaf.shape) % 8 == 0]
    assert big and all(leaf.addressable_shards[0].data.size * 8 == leaf.size for leaf in big)
    expected = state_shardings(eight.state, eight.mesh)
    for leaf, sharding in zip(jax.tree.leaves(eight.state), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "schedule_free_adamw"])
def test_a_state_that_was_put_away_continues_to_the_same_bits(name):
    optimizer = make_optimizer(lambda step: 1e-2 / (1.0 + step), name=name, **OPTIONS)
    make = functools.partial(Run, optimizer, model=Small(dtype=jnp.bfloat16), ema_decay=power_decay(0.1))
    whole, first = make(), make()
    whole.go(4)
    first.go(2)
    second = make(start=host(first.state))
    second.go(2)
    assert bits(second.state) == bits(whole.state)
    assert {leaf.dtype for leaf in jax.tree.leaves(second.state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.slow
def test_the_average_over_a_share_of_the_run_by_hand():
    run = Run(sgd(), ema_decay=power_decay(0.1), model=Small(dropout=0.0))
    mean = None
    for step in range(4):
        run.go(1)
        kept = (1 - 1 / (step + 1)) ** (power_of(0.1) + 1)
        new = host(run.state.variables)
        mean = (
            new
            if mean is None
            else jax.tree.map(lambda old, leaf, kept=kept: kept * old + (1 - kept) * leaf, mean, new)
        )
        assert_close(run.state.ema, mean, f"after step {step + 1}", rtol=1e-4, atol=1e-6)


def power_of(share):
    """The power whose profile on 0..1 has that standard deviation, by bisection of the formula."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        spread = np.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3)))
        low, high = (middle, high) if spread > share else (low, middle)
    return low


@pytest.mark.parametrize("mlp, parts", [("gelu", 1), ("swiglu", 2)])
def test_muon_takes_gate_and_values_of_swiglu_each_by_itself(mlp, parts):
    config = load_config("digits:patch", [f"--config.model.body.vit.mlp={mlp}", "--config.optimizer.name=muon"])
    model = runs.build_model(config, 10)
    cut = optimization.parameter_rules(config, model).matrices
    params = abstract_variables(model, config.image_size)["params"]["blocks_0"]
    assert cut(("blocks_0", "mlp", "in", "kernel"), params["mlp"]["in"]["kernel"].shape)[2] == parts
    assert cut(("blocks_0", "attention", "qkv", "kernel"), params["attention"]["qkv"]["kernel"].shape)[2] == 3
