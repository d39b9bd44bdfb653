"""`stce config`: every key has a meaning, and what it takes is what its check says."""

import json
import re

import pytest
from helpers import run_cli

from stce_jax.errors import ConfigError
from stce_jax.verbs.describe_config import describe_config, meanings, takes
from stce_jax.workdir.config import known_keys

# What names are there is for `stce models` and the docs; RandAugment's notation has a page.
NO_RANGE = {
    "model.name",
    "augment.rand_augment",
    *(f"model.{part}.name" for part in ("body", "embedding", "reduction")),
}


def test_every_key_has_a_meaning():
    """A key that fails here has no comment behind it in configs/default.py."""
    found = meanings()
    assert list(known_keys()) == sorted(found)
    assert not [key for key, meaning in found.items() if len(meaning) < 5]


@pytest.mark.parametrize("key", sorted(set(known_keys()) - NO_RANGE))
def test_every_key_says_what_it_takes(key):
    """A key that fails here has a check whose message does not say "; it must be ...", or none."""
    assert len(takes(key)) > 3
    assert "\0" not in takes(key)


@pytest.mark.parametrize(
    "key, words",
    [
        ("augment.erase", "between 0 and 1"),
        ("batch_size", "a whole number between 1 and 1048576"),
        ("model.body.swin.window", "a whole number between 1 and 128, or None"),
        ("model.body.swin.depths", "each a whole number between 1 and 1024, or None"),
        ("augment.crop_area", "two numbers between 1e-06 and 1, the smaller first"),
        ("augment.three_augment", "True or False"),
        ("optimizer.learning_rate_scaling", "one of none, linear"),
    ],
)
def test_what_some_take(key, words):
    assert takes(key) == words


def test_a_pattern_finds_keys_and_meanings():
    rows = describe_config("small_folder", "LEARNING_rate")
    assert {"optimizer.learning_rate", "optimizer.warmup_epochs"} <= {row["key"] for row in rows}
    (row,) = describe_config("digits", "crop_area", ["--config.augment.crop_area=0.5,1.0"])
    assert row["value"] == (0.5, 1.0) and row["meaning"].startswith("minimum and maximum share")
    with pytest.raises(ConfigError, match=re.escape("has 'mixap' in it; try augment.mixup")):
        describe_config("digits", "mixap")


def test_the_command(capsys):
    code, out, error = run_cli(capsys, "config", "digits", "mixup")
    assert (code, error) == (0, "")
    assert out.startswith("augment.cutmix = 0.0\n") or "augment.mixup = 0.0\n    alpha of mixup" in out
    code, out, error = run_cli(capsys, "config", "digits", "augment.mixup", "--json")
    assert code == 0 and json.loads(out)["takes"] == "0, or between 0.001 and 1000"
    code, out, error = run_cli(capsys, "config", "nothing")
    assert code == 2 and "there is no config 'nothing'" in error
