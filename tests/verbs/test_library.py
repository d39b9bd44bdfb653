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
    """The multiply-adds for which the library was chosen."""
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


def test_training_is_three_times_the_forward_pass_of_all_images(works):
    library.for_training(config_of(), DATASET, MODEL)
    assert works == [3 * 200 * multiply_adds()]


def test_of_a_run_by_minutes_the_minutes_count(works):
    library.for_training(config_of(minutes=3.0), DATASET, None)
    assert works == [3 * cpu_library.ENOUGH_WORK]


@pytest.mark.parametrize("minutes", [0, 3.0])
def test_other_dtypes_are_xlas(minutes, works):
    library.for_training(config_of(minutes=minutes, dtype="bfloat16"), DATASET, MODEL)
    library.for_inference(types.SimpleNamespace(config=config_of(dtype="bfloat16")), 10**12)
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
    assert 10 * each < works[1] < cpu_library.ENOUGH_WORK, "what is not counted is bounded from above"
