"""AdamW, its mask, its clipping, and the schedules, against formulas in plain NumPy, float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stce_jax.models.bodies import BODIES
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.recipe.muon import hidden_matrices
from stce_jax.recipe.optimizers import (
    OPTIMIZERS,
    decay_mask,
    group_parameters,
    make_optimizer,
    peak_learning_rate,
)
from stce_jax.recipe.schedules import make_schedule

PEAK, WARMUP_FROM, FINAL, WARMUP, TOTAL = 1e-3, 1e-6, 1e-5, 5, 20
SCHEDULE = {"peak": PEAK, "warmup_from": WARMUP_FROM, "final": FINAL, "warmup_steps": WARMUP, "total_steps": TOTAL}
ADAMW = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "clip_norm": 0.0}
SHAPES = {
    "class_token": (1, 1, 4),
    "position_embedding": (1, 5, 4),
    "block": {"norm": {"scale": (4,), "bias": (4,)}, "mlp": {"kernel": (4, 6), "bias": (6,)}},
    "stem": {"convolution": {"kernel": (3, 3, 2, 4), "bias": (4,)}},
}


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (scale * rng.normal(size=shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def learning_rate(step):
    """The schedule, written out."""
    if step < WARMUP:
        return WARMUP_FROM + (PEAK - WARMUP_FROM) * step / WARMUP
    progress = min(1.0, (step - WARMUP) / (TOTAL - WARMUP))
    return FINAL + (PEAK - FINAL) * 0.5 * (1.0 + math.cos(math.pi * progress))


def named_leaves(tree):
    """{"block/mlp/kernel": leaf, ...}"""
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class NumpyAdamW:
    """AdamW in torch's order of operations: decoupled decay, bias correction, epsilon outside the root."""

    def __init__(self, params, *, weight_decay, beta1, beta2, epsilon, clip_norm):
        self.params = {name: leaf.astype(np.float64) for name, leaf in named_leaves(params).items()}
        self.decay, self.beta1, self.beta2, self.epsilon, self.clip = weight_decay, beta1, beta2, epsilon, clip_norm
        self.first = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}
        self.second = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}
        self.count = 0

    def step(self, gradients, rate):
        gradients = {name: leaf.astype(np.float64) for name, leaf in named_leaves(gradients).items()}
        if self.clip:
            norm = math.sqrt(sum((leaf**2).sum() for leaf in gradients.values()))
            gradients = {name: leaf * min(1.0, self.clip / norm) for name, leaf in gradients.items()}
        self.count += 1
        for name, gradient in gradients.items():
            if name.endswith("kernel"):
                self.params[name] *= 1.0 - rate * self.decay
            self.first[name] = self.beta1 * self.first[name] + (1.0 - self.beta1) * gradient
            self.second[name] = self.beta2 * self.second[name] + (1.0 - self.beta2) * gradient**2
            first = self.first[name] / (1.0 - self.beta1**self.count)
            second = self.second[name] / (1.0 - self.beta2**self.count)
            self.params[name] = self.params[name] - rate * first / (np.sqrt(second) + self.epsilon)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 5.0, "beta1": 0.8, "beta2": 0.95},
        {"epsilon": 0.1},  # large enough to show on which side of the root it stands
        {"clip_norm": 1.0},
    ],
    ids=str,
)
def test_adamw_equals_numpy(options):
    options = ADAMW | options
    params = random_tree(0)
    reference = NumpyAdamW(params, **options)
    optimizer = make_optimizer(make_schedule(**SCHEDULE), **options)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(20):
        gradients = random_tree(1 + step, scale=0.02 * 1.5**step)  # norms from well below to far above 1
        changes, state = update(gradients, state, params)
        params = optax.apply_updates(params, changes)
        reference.step(gradients, learning_rate(step))
        for name, actual in named_leaves(params).items():
            expected = reference.params[name]
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7, err_msg=f"{name} after step {step + 1}")


def test_clipping_scales_the_global_norm_and_leaves_short_gradients_alone():
    """Seen through an Adam that only takes differences of size into account: with epsilon huge, changes ~ gradients."""
    optimizer = make_optimizer(1.0, **ADAMW | {"weight_decay": 0.0, "epsilon": 1e6, "clip_norm": 2.0})
    params, update = random_tree(0), jax.jit(optimizer.update)
    for scale in (0.01, 10.0):
        gradients = random_tree(1, scale)
        norm = math.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradients)))
        assert (norm > 2.0) == (scale == 10.0), "the test's gradients must lie on both sides of the limit"
        changes, _ = update(gradients, optimizer.init(params), params)
        for name, change in named_leaves(changes).items():
            expected = -1e-6 * named_leaves(gradients)[name] * min(1.0, 2.0 / norm)
            np.testing.assert_allclose(change, expected, rtol=1e-4, err_msg=f"{name} at gradient norm {norm:.2f}")


# --- the mask

OTHERS = [body for body in BODIES if body != "vit"]


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True], ids=["blocks", "scan"])
@pytest.mark.parametrize("name", [*list_models("vit_*"), *(f"{one}_{min(BODIES[one].SIZES)}" for one in OTHERS)])
def test_decay_is_for_kernels_and_nothing_else(name, scan_layers):
    options = {"depth": 2, "scan_layers": scan_layers}
    if "depth" not in model_options(name):
        if scan_layers:
            pytest.skip("the model has no scan_layers")
        options = {}
    size = 32 if name.startswith("vit_") else 64
    model = create_model(name, num_classes=7, image_size=size, **options)
    images = jnp.zeros((1, size, size, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    shapes, mask = named_leaves(params), named_leaves(decay_mask(params))
    assert mask.keys() == shapes.keys()
    decayed = {path for path, value in mask.items() if value is True}
    assert decayed == {path for path in shapes if path.rpartition("/")[2] == "kernel"}
    spared = {path.rpartition("/")[2] for path in shapes.keys() - decayed}
    # What is learned for places: tokens, positions, and biases of pairs of places.
    tables = {"class_token", "position_embedding", "bias_table", "pooled_bias_table", "surrounding_bias"}
    tables |= {f"position_bias_{stage}" for stage in range(4)}
    known = {"bias", "scale", "temperature", *tables}
    assert {"bias", "scale"} <= spared <= known, f"new kinds of parameters: {spared - known}"
    for path, leaf in shapes.items():
        cut, (top, *_) = hidden_matrices(tuple(path.split("/")), leaf.shape), path.split("/")
        axes = leaf.shape[1:] if top == "blocks" else leaf.shape
        mixes = path in decayed and min(axes[-2:]) > 1  # a depthwise kernel, or one of a single output, does not
        assert (cut is not None) == (mixes and top not in ("embedding", "head", "distillation_head")), path
        if cut is not None:
            layers, rows, parts, columns = cut
            assert math.prod(cut) == leaf.size and rows * parts * columns * layers == leaf.size
            assert parts == (3 if path.endswith("qkv/kernel") else 1) and layers == (2 if top == "blocks" else 1)
    if not scan_layers:  # DeiT's rule, which goes by rank: a scan stacks even biases into matrices
        by_rank = {path for path, leaf in shapes.items() if leaf.ndim > 1}
        assert decayed == {path for path in by_rank if path.rpartition("/")[2] not in tables}


# --- the schedule


@pytest.mark.parametrize("step", [0, 1, WARMUP - 1, WARMUP, WARMUP + 1, 12, TOTAL - 1, TOTAL, TOTAL + 1, 10 * TOTAL])
def test_schedule_is_its_formula(step):
    assert float(make_schedule(**SCHEDULE)(step)) == pytest.approx(learning_rate(step), rel=1e-5)


def test_schedule_at_its_landmarks():
    schedule = make_schedule(peak=1.0, warmup_from=0.1, final=0.2, warmup_steps=10, total_steps=30)
    landmarks = {0: 0.1, 5: 0.55, 10: 1.0, 15: 0.2 + 0.8 * (2 + math.sqrt(2)) / 4, 20: 0.6, 30: 0.2, 31: 0.2, 999: 0.2}
    for step, expected in landmarks.items():
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6), f"learning rate of step {step}"
    rates = [float(schedule(step)) for step in range(31)]
    assert max(rates) == rates[10] and rates[10:] == sorted(rates[10:], reverse=True)


def test_schedule_of_a_traced_step():
    """As the optimizer calls it."""
    schedule = make_schedule(**SCHEDULE)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(schedule))(jnp.arange(25)), [learning_rate(step) for step in range(25)], rtol=1e-5
    )


def test_no_warmup_starts_at_the_peak():
    schedule = make_schedule(peak=1.0, warmup_from=0.1, final=0.0, warmup_steps=0, total_steps=8)
    expected = [0.5 * (1.0 + math.cos(math.pi * step / 8)) for step in range(9)]
    np.testing.assert_allclose([float(schedule(step)) for step in range(9)], expected, atol=1e-6)


def test_a_run_shorter_than_its_warmup_only_warms_up():
    schedule = make_schedule(peak=1.0, warmup_from=0.0, final=0.5, warmup_steps=10, total_steps=4)
    np.testing.assert_allclose([float(schedule(step)) for step in range(5)], [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)


KNOTS = {"peak": 1.0, "warmup_from": 0.1, "final": 0.2, "warmup_steps": 10, "total_steps": 50}


@pytest.mark.parametrize(
    "name, options, knots",
    [
        ("linear", {}, {10: 1.0, 20: 0.8, 30: 0.6, 50: 0.2, 60: 0.2}),
        ("constant", {}, {10: 1.0, 30: 1.0, 50: 1.0, 999: 1.0}),
        # The last half of 50 steps: from 25 on, 1 - sqrt of what is over of it.
        (
            "wsd",
            {"decay_share": 0.5},
            {10: 1.0, 25: 1.0, 26: 1 - 0.8 * 0.2, 34: 1 - 0.8 * 0.6, 41: 0.36, 50: 0.2, 51: 0.2},
        ),
        ("wsd", {"decay_share": 1.0}, {9: 0.91, 10: 1.0, 20: 0.6, 50: 0.2}),  # all that follows the warm-up
    ],
)
def test_other_schedules_at_their_knots(name, options, knots):
    """After a warm-up that all have, also when all of it comes later, and of a traced step."""
    knots = {0: 0.1, 5: 0.55} | knots
    for shift in (0, 2.5, -3):
        schedule = make_schedule(**KNOTS, name=name, shift=shift, **options)
        for step, expected in knots.items():
            assert float(schedule(step + shift)) == pytest.approx(expected, rel=1e-5), f"{name}, {shift}: step {step}"
    traced = jax.jit(jax.vmap(make_schedule(**KNOTS, name=name, **options)))(jnp.array(list(knots)))
    np.testing.assert_allclose(traced, list(knots.values()), rtol=1e-5)


def fallen(name, done, decay_share=0.2):
    """What is left of the way from the start to the end of a part, of which the share `done` is over."""
    if name == "wsd":
        return 1 - math.sqrt(max(0.0, done - (1 - decay_share)) / decay_share)
    return 1 - done if name == "linear" else (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("restart", [0.0, 0.5])
def test_a_restart_begins_the_schedule_anew_and_each_part_ends_where_the_next_begins(name, restart):
    """From its own rate, or the peak; what is before is the schedule that ends there, to the bit; also with a shift."""
    restarts = {"restart_steps": (50, 70), "restart": restart}
    schedule, first = (
        make_schedule(**KNOTS | {"total_steps": 110}, name=name, **restarts),
        make_schedule(**KNOTS, name=name),
    )
    shifted = make_schedule(**KNOTS | {"total_steps": 110}, name=name, shift=7, **restarts)
    start = restart or 1.0
    for step in range(115):
        if step < 50:
            assert schedule(step) == first(step), f"step {step}: what is over has changed"
            continue
        begin, end = (50, 70) if step < 70 else (70, 110)
        expected = 0.2 + (start - 0.2) * fallen(name, min(1.0, (step - begin) / (end - begin)))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), f"step {step}"
        assert float(shifted(step + 7)) == pytest.approx(expected, rel=1e-5), f"step {step}, shifted"
    assert float(schedule(50)) == float(schedule(70)) == pytest.approx(start) and float(schedule(49)) < start
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(115))
    np.testing.assert_allclose(traced, [float(schedule(step)) for step in range(115)], rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_schedules_are_given_in_epochs(name):
    """Twice the batch, half the steps: the same rate at the same epoch."""
    half = {option: KNOTS[option] // 2 for option in ("warmup_steps", "total_steps")}
    whole, shorter = make_schedule(**KNOTS, name=name), make_schedule(**KNOTS | half, name=name)
    for step in range(26):
        assert float(shorter(step)) == pytest.approx(float(whole(2 * step)), rel=1e-5)


@pytest.mark.parametrize("name", ["linear", "wsd", "constant"])
def test_a_run_as_short_as_its_warmup_has_no_rate_that_is_no_number(name):
    schedule = make_schedule(**KNOTS | {"total_steps": 10}, name=name)
    assert all(math.isfinite(float(schedule(step))) for step in range(13))


def test_linear_scaling_is_by_batches_of_512():
    assert peak_learning_rate(1e-3, "none", 4096) == 1e-3
    assert peak_learning_rate(1e-3, "linear", 512) == 1e-3
    assert peak_learning_rate(1e-3, "linear", 128) == pytest.approx(2.5e-4)
    assert peak_learning_rate(5e-4, "linear", 1024) == pytest.approx(1e-3)


# --- the table and the groups


def test_the_optimizers_state_is_that_of_earlier_checkpoints():
    """Its tree, which a checkpoint must have to be restored."""
    params = random_tree(0)
    for clip_norm in (0.0, 1.0):
        optimizer = make_optimizer(make_schedule(**SCHEDULE), **ADAMW | {"clip_norm": clip_norm})
        expected = optax.adamw(
            make_schedule(**SCHEDULE), weight_decay=0.05, mask=lambda tree: jax.tree.map(lambda _: True, tree)
        )
        if clip_norm:
            expected = optax.chain(optax.clip_by_global_norm(clip_norm), expected)
        trees = [jax.tree.structure(made.init(params)) for made in (optimizer, expected)]
        assert trees[0] == trees[1]


def test_a_group_function_sees_path_and_shape():
    groups = group_parameters(random_tree(0), lambda path, shape: f"{'/'.join(path)} {len(shape)}")
    assert groups["block"]["mlp"] == {"kernel": "block/mlp/kernel 2", "bias": "block/mlp/bias 1"}
    assert groups["class_token"] == "class_token 3"


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_table_steps(name):
    optimizer, params = make_optimizer(1e-3, name=name, **ADAMW), random_tree(0)
    changes, _ = optimizer.update(random_tree(1), optimizer.init(params), params)
    assert all(np.abs(change).max() > 0 for change in jax.tree.leaves(changes))
