"""What modules leave for the loss and the log: in the step's loss and gradient, in its metrics, in evaluations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from stce_jax.errors import ConfigError
from stce_jax.models.reductions.reduction import sow_scalar
from stce_jax.training.left import TAKEN, added_loss, left_metrics
from stce_jax.training.mesh import batch_sharding, make_mesh
from stce_jax.training.state import TrainState
from stce_jax.training.step import make_eval_step, make_train_step, run_key
from stce_jax.workdir.metric_lines import read_metrics

RATE = 0.5
SMALLEST = (
    "--config=digits:patch",
    "--config.epochs=0.2",
    "--config.batch_size=32",
    "--config.image_size=16",
    "--config.model.body.vit.width=8",
    "--config.model.body.vit.depth=1",
    "--config.model.body.vit.heads=2",
    "--config.model.body.vit.mlp_dim=8",
    "--config.model.embedding.patch.patch_size=4",
    "--config.model.reduction.name=ats",
    "--config.model.reduction.ats.blocks=0",
)


class Part(nn.Module):
    """Leaves the weight's square for the loss, and its product with each image's first number for the log."""

    name_of_metric: str = "product"

    @nn.compact
    def __call__(self, images):
        weight = self.param("weight", nn.initializers.ones, ())
        sow_scalar(self, "losses", "square", weight**2)
        sow_scalar(self, "metrics", self.name_of_metric, weight * images[:, 0, 0, 0])


class Leaving(nn.Module):
    """Gives the same logits always; two parts leave something."""

    metrics: tuple[str, str] = ("product", "product")

    def setup(self):
        self.parts = [Part(name) for name in self.metrics]

    def __call__(self, images, *, train):
        for part in self.parts:
            part(images)
        return jnp.zeros((len(images), 4))


def variables(first=2.0, second=3.0):
    return {"params": {"parts_0": {"weight": jnp.float32(first)}, "parts_1": {"weight": jnp.float32(second)}}}


def batch_of(rows, devices=1):
    images = np.zeros((rows, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(rows)
    batch = {"image": images, "label": np.zeros(rows, np.int32), "weight": (np.arange(rows) < rows - 2) * 1.0}
    mesh = make_mesh(1, jax.devices()[:devices])
    return jax.device_put(batch, batch_sharding(mesh)), mesh


def augment(key, step, images, labels):
    return images.astype(jnp.float32), jax.nn.one_hot(labels, 4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_adds_losses_and_averages_metrics(accumulate):
    batch, mesh = batch_of(8, devices=2)
    optimizer = optax.sgd(RATE)
    state = TrainState(jnp.int32(0), variables(), optimizer.init(variables()["params"]), None)
    step = make_train_step(Leaving(), optimizer, augment, ema_decay=0.0, state=state, mesh=mesh, accumulate=accumulate)
    del batch["weight"]
    state, metrics = step(state, batch, run_key(0, mesh))
    assert float(metrics["loss"]) == pytest.approx(np.log(4) + 4 + 9)
    assert float(metrics["product"]) == pytest.approx(2.5 * 3.5), "the mean over images and modules"
    assert float(state.variables["params"]["parts_0"]["weight"]) == pytest.approx(2 - RATE * 4)
    assert float(state.variables["params"]["parts_1"]["weight"]) == pytest.approx(3 - RATE * 6)
    assert state.variables.keys() == {"params"}, "what is left has become part of the state"


def test_an_evaluation_step_weighs_metrics_and_adds_no_loss():
    batch, mesh = batch_of(8)
    step = make_eval_step(Leaving(("one", "other")), lambda images: images.astype(jnp.float32), mesh=mesh)
    sums = step(variables(), batch)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(
        {"loss": 6 * np.log(4), "top1": 6, "top5": 6, "count": 6, "one": 2 * 15, "other": 3 * 15}
    )


def test_of_a_model_that_leaves_nothing_nothing_comes():
    assert left_metrics({}) == {} and float(added_loss({"batch_stats": {}}, jnp.float32(2.0))) == 2.0


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_a_name_that_the_log_has_is_refused(name):
    with pytest.raises(ConfigError, match=f"a module leaves a metric called '{name}', as the log's own is; rename it"):
        left_metrics({"metrics": {"blocks_1": {"reduction": {name: jnp.zeros(3)}}}})


@pytest.mark.slow
def test_tokens_of_ats_are_in_the_log_and_in_the_evaluation(stce_here, data_dir, tmp_path):
    """From the config to evaluation.json."""
    done = stce_here("train", *SMALLEST, f"--workdir={tmp_path}", f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path)
    assert {line["split"] for line in lines} == {"train", "eval"}
    assert all(1 <= line["tokens_block_0"] <= 12 for line in lines), "12 samples of 16 tokens are the bound"
    done = stce_here("evaluate", f"--workdir={tmp_path}", f"--output={tmp_path / 'evaluation'}")
    assert done.returncode == 0 and "\ntokens_block_0 " in done.stdout, done.stderr
    saved = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert saved["metrics"] == pytest.approx({"tokens_block_0": lines[-1]["tokens_block_0"]}, rel=1e-6)
