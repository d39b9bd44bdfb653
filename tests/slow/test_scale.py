"""What lets a run grow leaves its losses alone: devices, fsdp, micro-batches, remat, a scan over layers, bfloat16.

On eight CPU devices, with a tiny STCE-ViT on real digits.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from stce_jax.models.factory import create_model
from stce_jax.recipe.augment import make_augment
from stce_jax.recipe.optimizers import make_optimizer
from stce_jax.recipe.schedules import make_schedule
from stce_jax.training import mesh as mesh_module
from stce_jax.training.mesh import batch_sharding, make_mesh, state_shardings
from stce_jax.training.state import abstract_variables, init_state
from stce_jax.training.step import make_train_step, run_key

SEED, CLASSES, SIZE, BATCH, SHORT, LONG = 3, 10, 16, 32, 6, 50
SMALLEST_SPLIT = mesh_module.SMALLEST_SPLIT  # as users have it, whatever the tests below split
BODY = {"num_classes": CLASSES, "image_size": SIZE, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
STEM = {"stem_widths": (8, 16), "stem_strides": (2, 2), "cell": 2}
# A peak of 1e-3: at 3e-3 a rounding in the last place of the initial parameters, on one device, grows to as much as
# 3e-5 of the loss within 50 steps. At 1e-3 it stays below 1e-6, so that what else differs can be told from it.
OPTIMIZER = make_optimizer(
    make_schedule(peak=1e-3, warmup_from=1e-6, final=1e-5, warmup_steps=22, total_steps=90),
    weight_decay=0.05,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    clip_norm=0.0,
)
AUGMENT = make_augment(
    CLASSES,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    flip=0.0,
    shift=0,
    mixup=0.0,
    cutmix=0.0,
    switch_probability=0.5,
    label_smoothing=0.1,
    rand_augment="",
    three_augment=False,
    color_jitter=0.0,
    erase=0.0,
    erase_area=(0.02, 1 / 3),
    erase_ratio=(0.3, 3.3),
)
pytestmark = pytest.mark.usefixtures("eight_devices", "everything_is_split")


def stce(**options):
    return create_model("vit_ti_stce", **BODY, **STEM, **{"drop_path": 0.1} | options)


def patch(**options):
    return create_model("vit_ti_patch", **BODY, patch_size=4, **options)


@pytest.fixture(scope="module")
def batches():
    """Fifty batches of the digits, each pixel of the 8x8 scans made 2x2."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[: LONG * BATCH].reshape(LONG, BATCH)
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    images = np.repeat(grey[..., None], 3, axis=-1)  # [1797, 16, 16, 3]
    return [{"image": images[rows], "label": digits.target[rows].astype(np.int32)} for rows in order]


def stack_blocks(params):
    """The parameters of a model with a scan over layers: those of its blocks, stacked."""
    blocks = [params[f"blocks_{index}"] for index in range(BODY["depth"])]
    rest = {name: value for name, value in params.items() if not name.startswith("blocks_")}
    return rest | {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


class Run(NamedTuple):
    """Losses [steps], and the last parameters with their blocks stacked."""

    losses: np.ndarray
    params: Any


INITIAL = {}  # model -> its initial state on the host


def train(model, batches, *, devices=8, fsdp=1, accumulate=1):
    """Trains a model on some devices, one step a batch; returns a Run.

    The initial parameters are those that the seed gives a model without a scan, whatever `model` is.
    """
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    plain = model.clone(scan_layers=False, remat=False)
    if plain not in INITIAL:
        state = init_state(plain, OPTIMIZER, seed=SEED, image_size=SIZE, with_ema=False, mesh=make_mesh())
        INITIAL[plain] = jax.tree.map(np.asarray, state)
    state = INITIAL[plain]
    if model.scan_layers:
        params = stack_blocks(state.variables["params"])
        state = state.replace(variables=state.variables | {"params": params}, optimizer=OPTIMIZER.init(params))
    state = jax.device_put(state, state_shardings(state, mesh))
    train_step = make_train_step(
        model,
        OPTIMIZER,
        AUGMENT,
        ema_decay=0.0,
        accumulate=accumulate,
        deterministic=False,
        state=state,
        mesh=mesh,
    )
    batches = [jax.device_put(batch, batch_sharding(mesh)) for batch in batches]
    key = run_key(SEED, mesh)
    losses = []
    for batch in batches:
        state, metrics = train_step(state, batch, key)
        losses.append(float(metrics["loss"]))
    params = jax.tree.map(np.asarray, state.variables["params"])
    params = params if model.scan_layers else stack_blocks(params)
    return Run(np.array(losses), params)


def assert_same_run(actual, expected, what):
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=1e-6, err_msg=f"losses, {what}")
    pairs = zip(jax.tree.leaves_with_path(actual.params), jax.tree.leaves(expected.params), strict=True)
    for (path, left), right in pairs:
        # The gradients of the keys' biases are zero but for rounding, and Adam makes them as large as the others.
        tolerance = 1e-4 if path[-2:] == (jax.tree_util.DictKey("qkv"), jax.tree_util.DictKey("bias")) else 1e-6
        message = f"{what}: {jax.tree_util.keystr(path)} after {SHORT} steps"
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=tolerance, err_msg=message)


# --- six steps on eight devices


@pytest.fixture(scope="module")
def plain(batches):
    """With nothing special."""
    run = train(stce(), batches[:SHORT])
    initial = INITIAL[stce()].variables["params"]
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), run.params, stack_blocks(initial))
    assert min(jax.tree.leaves(moved)) > 1e-5, "the run is too short for these tests to tell anything"
    return run


def test_a_scan_over_layers_changes_no_loss(plain, batches):
    """From the same initial weights, and with the same draws of stochastic depth."""
    assert_same_run(train(stce(scan_layers=True), batches[:SHORT]), plain, "scan against loop")


def test_all_together_change_no_loss(batches):
    """fsdp, micro-batches, remat and scan against a plain run; without BatchNorm and draws, which micro-batches have
    of their own."""
    run = train(patch(remat=True, scan_layers=True), batches[:SHORT], fsdp=4, accumulate=2)
    assert_same_run(run, train(patch(), batches[:SHORT]), "all together against plain")


def test_all_together_change_no_loss_of_the_super_token_embedding(plain, batches):
    """Against micro-batches alone, which test_step.py compares with a plain loop over them."""
    model = stce(remat=True, scan_layers=True)
    slope = jax.jit(jax.grad(lambda variables, images: model.apply(variables, images, train=False).sum()))
    program = slope.lower(abstract_variables(model, SIZE), np.zeros((1, SIZE, SIZE, 3), np.float32))
    assert "rematted_computation" in program.as_text(debug_info=True), "no block is computed anew"
    run = train(model, batches[:SHORT], fsdp=4, accumulate=2)
    by_micro_batches = train(stce(), batches[:SHORT], accumulate=2)
    assert_same_run(run, by_micro_batches, "fsdp, remat and scan against micro-batches alone")
    assert np.abs(run.losses / plain.losses - 1).max() > 1e-4, "micro-batches have no statistics of their own"


# --- fifty steps


@pytest.fixture(scope="module")
def on_one_device(batches):
    run = train(stce(), batches, devices=1)
    assert np.mean(run.losses[-5:]) < run.losses[0] - 0.1, "the run is too short for these tests to tell anything"
    return run


def largest_difference(run, expected):
    """(the largest relative difference of two runs' losses, its step)."""
    differences = np.abs(run.losses / expected.losses - 1)
    return differences.max(), 1 + int(differences.argmax())


def test_fifty_losses_do_not_depend_on_the_number_of_devices(on_one_device, batches):
    difference, step = largest_difference(train(stce(), batches), on_one_device)
    assert difference < 1e-5, f"the loss on 8 devices differs by {difference:.1e} of one device's at step {step}"


def test_bfloat16_tracks_float32_for_fifty_steps(on_one_device, batches):
    difference, step = largest_difference(train(stce(dtype="bfloat16"), batches, devices=1), on_one_device)
    assert difference < 0.02, f"bfloat16's loss differs by {difference:.1%} of float32's at step {step}"
    assert difference > 1e-5, "that was no bfloat16"


# --- bytes


@pytest.fixture(scope="module")
def bytes_held():
    """dict fsdp -> bytes that each of eight devices holds of parameters, optimizer state and average."""
    one = make_mesh(1, jax.devices()[:1])
    initial = init_state(patch(), OPTIMIZER, seed=0, image_size=SIZE, with_ema=True, mesh=one)
    held = {}
    for fsdp in (1, 2, 4, 8):
        state = jax.device_put(initial, state_shardings(initial, make_mesh(fsdp)))
        shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
        each = [sum(shard.data.nbytes for shard in shards if shard.device == device) for device in jax.devices()]
        assert len(set(each)) == 1, f"fsdp {fsdp}: the devices hold {each} bytes"
        held[fsdp] = each[0]
    return held


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_fsdp_divides_the_bytes_that_a_device_holds(bytes_held, fsdp):
    share = bytes_held[fsdp] / bytes_held[1]
    assert share == pytest.approx(1 / fsdp, rel=0.05), f"one of {fsdp} devices holds {share:.1%} of the state"


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_fsdp_divides_the_bytes_of_the_papers_model(fsdp, monkeypatch):
    """ViT-S with the super-token embedding as it is, small arrays whole; by its shapes, computing nothing."""
    monkeypatch.setattr(mesh_module, "SMALLEST_SPLIT", SMALLEST_SPLIT)
    params = abstract_variables(create_model("vit_s_stce", num_classes=100), 224)["params"]
    state = {"params": params, "optimizer": jax.eval_shape(OPTIMIZER.init, params), "ema": params}
    leaves, shardings = jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, make_mesh(fsdp)))
    held = [np.prod(each.shard_shape(leaf.shape)) for leaf, each in zip(leaves, shardings, strict=True)]
    share = sum(held) / sum(leaf.size for leaf in leaves)
    assert share == pytest.approx(1 / fsdp, rel=0.05), f"one of {fsdp} devices holds {share:.1%} of the state"
