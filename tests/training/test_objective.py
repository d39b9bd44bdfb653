"""Steps with weights of classes, or several labels an image: the same on any devices, and equal to formulas."""

import dataclasses
import io

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import config_dict
from numpy_reference import softmax, weighted_cross_entropy
from PIL import Image
from sklearn.metrics import average_precision_score

from stce_jax.data.dataset import Dataset
from stce_jax.data.views import Views
from stce_jax.errors import DataError
from stce_jax.training import evaluation
from stce_jax.training.mesh import batch_sharding, make_mesh, state_shardings
from stce_jax.training.objective import build_objective, class_weights
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


SETS = (np.random.default_rng(1).random((BATCH, 3)) < 0.4).astype(np.int32)
SINGLE, MULTI = (
    config_dict.ConfigDict({"task": task, "deterministic": False}) for task in ("single_label", "multi_label")
)


def smoothed_sets(key, step, images, labels):
    return images / 255.0, 0.9 * labels + 0.05


OBJECTIVES = {"weighted": (SINGLE, weights(), smoothed, LABELS), "label sets": (MULTI, None, smoothed_sets, SETS)}


@pytest.fixture(scope="module", params=OBJECTIVES)
def steps(request):
    """{(devices, micro-batches): (metrics, change of the kernel)} of a step, the layer before it, and the features."""
    config, own, augment, labels = OBJECTIVES[request.param]
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
        "label": labels,
    }
    model, sgd, found = Linear(), optax.sgd(1.0), {}
    for devices, accumulate in ((1, 1), (8, 1), (8, 2)):
        mesh = make_mesh(1, jax.devices()[:devices])
        state = init_state(model, sgd, seed=0, image_size=SIZE, with_ema=False, mesh=mesh)
        before = jax.tree.map(np.array, state.variables["params"])
        options = {"state": state, "mesh": mesh, "objective": build_objective(config, own), "accumulate": accumulate}
        step = make_train_step(model, sgd, augment, ema_decay=0.0, **options)
        placed = jax.device_put(state, state_shardings(state, mesh))
        after, metrics = step(placed, jax.device_put(batch, batch_sharding(mesh)), run_key(0, mesh))
        change = before["Dense_0"]["kernel"] - np.array(after.variables["params"]["Dense_0"]["kernel"])
        found[devices, accumulate] = {name: float(value) for name, value in metrics.items()}, change
    return request.param, found, before["Dense_0"], batch["image"].reshape(BATCH, -1) / 255.0


def by_hand(kind, logits):
    """(loss, its slope at the logits [B, 3])."""
    if kind == "weighted":
        targets, own = 0.9 * np.eye(3)[LABELS] + 0.1 / 3, np.array(weights())
        weighted = targets * own
        slope = softmax(logits) * weighted.sum(axis=1, keepdims=True) - weighted
        return weighted_cross_entropy(logits, targets, own)[1], slope / BATCH
    targets, p = 0.9 * SETS + 0.05, 1 / (1 + np.exp(-logits))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(), (p - targets) / (3 * BATCH)


def test_the_step_minimises_its_loss_on_any_devices_and_micro_batches(steps):
    kind, found, dense, features = steps
    loss, slope = by_hand(kind, features @ dense["kernel"].astype(np.float64) + dense["bias"])
    for (devices, accumulate), (metrics, change) in found.items():
        where = f"{devices} devices, {accumulate} micro-batches"
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5), where
        np.testing.assert_allclose(change, features.T @ slope, rtol=1e-4, atol=1e-5, err_msg=where)
        assert ("top1" in metrics) == (kind == "weighted"), metrics


class Pixels(nn.Module):
    """Logits that are three of an image's bytes, less 100."""

    @nn.compact
    def __call__(self, images, *, train):
        return images[:, 0, 0] - 100.0


class Source:
    """21 images of bytes that mean as little as can be, with ties among them."""

    label_shape = (3,)
    pixels = np.random.default_rng(2).integers(90, 110, (21, 3), dtype=np.uint8)
    sets = (np.random.default_rng(3).random((21, 3)) < 0.5).astype(np.uint8)

    def __len__(self):
        return 21

    def name(self, index):
        return f"image {index}"

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.fromarray(np.tile(self.pixels[index], (4, 4, 1))).save(file, "PNG")
        return {"image": file.getvalue(), "label": self.sets[index], "name": self.name(index)}


@pytest.mark.parametrize("devices", [1, 8])
def test_an_evaluation_ranks_all_images_once_on_any_devices(devices):
    """Batches of 8, of which the last is filled up; the score is not the mean of the batches' scores."""
    config = MULTI.copy_and_resolve_references().unlock()
    config.update({"eval_batch_size": 8, "loader_threads": 1, "loader_timeout": 60.0})
    mesh = make_mesh(1, jax.devices()[:devices])
    views = Views(Source(), size=4, crop="center", fraction=1.0)
    plain = dataclasses.replace(dataset(None), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    metrics = evaluation.mean_metrics({}, evaluation.eval_step(Pixels(), plain, config, mesh), views, config, mesh)
    logits = Source.pixels.astype(np.float64) - 100
    expected = [average_precision_score(Source.sets[:, k], logits[:, k]) for k in range(3)]
    assert metrics["map"] == pytest.approx(np.mean(expected), rel=1e-6)
    p = 1 / (1 + np.exp(-logits))
    losses = -np.where(Source.sets, np.log(p), np.log(1 - p))
    assert list(metrics) == ["loss", "map"] and metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_weights_are_of_the_training_images():
    np.testing.assert_allclose(weights(), 16 / (3 * np.array([10, 4, 2])))
    assert weights("") is None


def test_a_class_without_training_images_is_refused_by_name():
    with pytest.raises(DataError, match=r"class 'd' has no training image; add some"):
        weights(class_ids=("a", "b", "c", "d"))
