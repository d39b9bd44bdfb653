"""Names that are no config keys, and the keys that they were meant to be."""

import pytest

from stce_jax.workdir.config import known_keys
from stce_jax.workdir.spelling import OF_OTHER_TOOLS, called, meant


def test_every_name_of_another_tool_leads_to_a_key_and_is_none_itself():
    keys = set(known_keys())
    assert set(OF_OTHER_TOOLS.values()) <= keys
    assert not set(OF_OTHER_TOOLS) & keys
    assert all(name == name.lower() and "-" not in name for name in OF_OTHER_TOOLS)


@pytest.mark.parametrize(
    "name, key",
    [
        ("epochs", "epochs"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("Learning-Rate", "optimizer.learning_rate"),
        ("batch-size", "batch_size"),
        ("img_size", "image_size"),
        ("embedding.stce.iterations", "model.embedding.stce.iterations"),
        ("body.swin.window", "model.body.swin.window"),
    ],
)
def test_what_is_called_otherwise_is_found(name, key):
    assert called(name, known_keys()) == meant(name, known_keys()) == key


@pytest.mark.parametrize(
    "name, key",
    [
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("sed", "seed"),
        ("augment.mixap", "augment.mixup"),
        ("model.embedding.stce.iteration", "model.embedding.stce.iterations"),
    ],
)
def test_what_is_misspelled_is_near(name, key):
    assert called(name, known_keys()) is None and meant(name, known_keys()) == key


@pytest.mark.parametrize("name", ["", ".", "qqqq", "a" * 10_000, "\x1b[2J", "💥"])
def test_what_is_near_nothing_is_none(name):
    assert meant(name, known_keys()) is None
