"""The training step with weights of classes: the same on any devices, equal to what it is when written by hand."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import config_dict
from numpy_reference import weighted_cross_entropy

from stce_jax.data.dataset import Dataset
from stce_jax.errors import DataError
from stce_jax.training.mesh import batch_sharding, make_mesh, state_shardings
from stce_jax.training.objective import build_loss, class_weights
from stce_jax.training.state import init_state
from stce_jax.training.step import make_train_step, run_key

SIZE, BATCH = 4, 16
LABELS = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 0], np.int32)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(3)(images.reshape(len(images), -1))


def smoothed(key, step, images, labels):
    return images / 255.0, 0.9 * jax.nn.one_hot(labels, 3) + 0.1 / 3


class Known:
    """A source that knows its labels."""

    def labels(self):
        return LABELS


def dataset(source, class_ids=("a", "b", "c")):
    return Dataset(source, None, class_ids, class_ids, str, (0.5,) * 3, (0.5,) * 3)


def weights(text="balanced", **options):
    return class_weights(config_dict.ConfigDict({"class_weights": text}), dataset(Known(), **options))


@pytest.fixture(scope="module")
def steps():
    """{(devices, micro-batches): (loss, gradient of the kernel)} of one step from the same state, and the state."""
    batch = {"image": np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)}
    batch["label"] = LABELS
    model, sgd, found = Linear(), optax.sgd(1.0), {}
    for devices, accumulate in ((1, 1), (8, 1), (8, 2)):
        mesh = make_mesh(1, jax.devices()[:devices])
        state = init_state(model, sgd, seed=0, image_size=SIZE, with_ema=False, mesh=mesh)
        before = jax.tree.map(np.array, state.variables["params"])
        loss = build_loss(weights())
        step = make_train_step(
            model, sgd, smoothed, ema_decay=0.0, state=state, mesh=mesh, loss=loss, accumulate=accumulate
        )
        placed = jax.device_put(state, state_shardings(state, mesh))
        after, metrics = step(placed, jax.device_put(batch, batch_sharding(mesh)), run_key(0, mesh))
        change = before["Dense_0"]["kernel"] - np.array(after.variables["params"]["Dense_0"]["kernel"])
        found[devices, accumulate] = float(metrics["loss"]), change
    return found, before["Dense_0"], batch["image"].reshape(BATCH, -1) / 255.0


def test_the_step_minimises_the_weighted_loss_on_any_devices_and_micro_batches(steps):
    found, dense, features = steps
    targets, own = 0.9 * np.eye(3)[LABELS] + 0.1 / 3, np.array(weights())
    logits = features @ dense["kernel"].astype(np.float64) + dense["bias"]
    _, expected = weighted_cross_entropy(logits, targets, own)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    weighted = targets * own
    slope = powers / powers.sum(axis=1, keepdims=True) * weighted.sum(axis=1, keepdims=True) - weighted
    gradient = features.T @ slope / BATCH
    for (devices, accumulate), (loss, change) in found.items():
        where = f"{devices} devices, {accumulate} micro-batches"
        assert loss == pytest.approx(expected, rel=1e-5), where
        np.testing.assert_allclose(change, gradient, rtol=1e-4, atol=1e-5, err_msg=where)


def test_weights_are_of_the_training_images():
    np.testing.assert_allclose(weights(), 16 / (3 * np.array([10, 4, 2])))
    assert weights("") is None


def test_a_class_without_training_images_is_refused_by_name():
    with pytest.raises(DataError, match=r"class 'd' has no training image; add some"):
        weights(class_ids=("a", "b", "c", "d"))
