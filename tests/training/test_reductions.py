"""Training with token reductions: the devices that share a batch, and the bits of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import initial

from stce_jax.models.factory import create_model
from stce_jax.training.mesh import batch_sharding, make_mesh, state_shardings
from stce_jax.training.state import TrainState
from stce_jax.training.step import make_train_step, run_key

CLASSES, SIZE = 5, 16
SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch_size": 4, "drop_path": 0.0}
# One that selects, one that merges, one that draws, one that masks, and one with a loss and draws of its own.
METHODS = ("evit", "tome", "dpcknn", "ats", "dynamicvit")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("everything_is_split")]


def one_hot(key, step, images, labels):
    return images.astype(jnp.float32) / 255, jax.nn.one_hot(labels, CLASSES)


def step_of(method, devices):
    """(parameters, metrics) after a step on eight images."""
    options = {"counting": "initial"} if method == "evit" else {"r": 4} if method == "tome" else {}
    options |= {"blocks": (1,)} if method == "tome" else {"blocks": (1,), "keep_rate": 0.5}
    model = create_model("vit_ti_patch", num_classes=CLASSES, image_size=SIZE, reduction=method, **options, **SMALL)
    mesh, optimizer = make_mesh(1, jax.devices()[:devices]), optax.sgd(0.1)
    variables = initial(model, np.zeros((1, SIZE, SIZE, 3), np.float32), train=False)
    state = TrainState(np.int32(0), variables, optimizer.init(variables["params"]), None)
    state = jax.device_put(state, state_shardings(state, mesh))
    step = make_train_step(model, optimizer, one_hot, ema_decay=0.0, state=state, mesh=mesh)
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    batch = {"image": images, "label": np.arange(8, dtype=np.int32) % CLASSES}
    after, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)), run_key(0, mesh))
    assert all(
        leaf.sharding.is_equivalent_to(own, leaf.ndim)
        for leaf, own in zip(jax.tree.leaves(after), jax.tree.leaves(state_shardings(after, mesh)), strict=True)
    )
    return jax.tree.map(np.asarray, after.variables), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_eight_devices_is_that_of_one(method):
    (one, alone), (eight, together) = (step_of(method, devices) for devices in (1, 8))
    assert alone.keys() == together.keys() and np.isfinite(alone["loss"])
    assert {"ats": "tokens_block_1" in alone}.get(method, True), alone
    for name in alone:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5, err_msg=f"{method}: {name}")
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=f"{method}: {jax.tree_util.keystr(path)}")


def test_in_bfloat16_every_method_gives_finite_logits_and_gradients():
    for method in METHODS:
        model = create_model(
            "vit_ti_patch",
            num_classes=CLASSES,
            image_size=SIZE,
            reduction=method,
            dtype="bfloat16",
            blocks=(1,),
            **SMALL,
        )
        images = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
        variables = initial(model, images, train=False)

        def loss(params, model=model, images=images):
            logits, left = model.apply(
                {"params": params},
                images,
                train=True,
                rngs={"dropout": jax.random.key(1)},
                mutable=["losses", "metrics"],
            )
            assert logits.dtype == jnp.float32
            return (logits**2).sum() + sum(jax.tree.leaves(left.get("losses", {})))

        gradients = jax.jit(jax.grad(loss))(variables["params"])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients)), method
