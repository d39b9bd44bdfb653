"""Which runs are long enough for oneDNN."""

import types

import jax
import jax.numpy as jnp
import pytest

from stce_jax.models.factory import create_model
from stce_jax.platform import cpu_library
from stce_jax.verbs import library


@pytest.fixture
def works(monkeypatch):
    """The multiply-adds for which the library was chosen, in a process with one CPU device."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    asked = []
    monkeypatch.setattr(library, "chosen_for", asked.append)
    return asked


def config_of(**options):
    model = types.SimpleNamespace(dtype=options.pop("dtype", None))
    return types.SimpleNamespace(**{"image_size": 32, "epochs": 2, "minutes": 0, "model": model, **options})


MODEL = create_model("vit_ti_patch", num_classes=10, image_size=32)
DATASET = types.SimpleNamespace(train=range(100))


def multiply_adds():
    return library.count_model(MODEL, 32)["multiply_adds"]


@pytest.mark.parametrize("more", [{}, {"epochs": 90}, {"minutes": 3.0}])
def test_training_is_three_times_the_forward_pass_of_ten_epochs_however_long_it_is(more, works):
    library.for_training(config_of(**more), DATASET, MODEL)
    assert works == [3 * 10 * 100 * multiply_adds()]


@pytest.mark.parametrize("elsewhere", ["in bfloat16", "on two devices", "on a GPU"])
def test_elsewhere_nothing_is_counted(elsewhere, works, monkeypatch):
    monkeypatch.setattr(library, "count_model", None)
    monkeypatch.setattr(library, "count_parameters", None)
    if elsewhere == "on two devices":
        monkeypatch.setattr(jax, "device_count", lambda: 2)
    if elsewhere == "on a GPU":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = config_of(dtype="bfloat16" if elsewhere == "in bfloat16" else None)
    library.for_training(config, DATASET, MODEL)
    library.for_inference(types.SimpleNamespace(config=config), 10**12)
    assert works == [0, 0]


def test_inference_is_counted_where_it_may_be_enough(works, monkeypatch):
    params = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    run = types.SimpleNamespace(config=config_of(dtype="float32"), variables={"params": params}, model=MODEL)
    each = multiply_adds()
    enough = int(cpu_library.ENOUGH_WORK / each) + 1
    library.for_inference(run, enough)
    assert works == [enough * each]
    monkeypatch.setattr(library, "count_model", None)
    library.for_inference(run, 10)
    assert works[1] == 0
