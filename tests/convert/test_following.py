"""Preprocessing that belongs to weights: followed where the config leaves it open, said where it differs, kept."""

import numpy as np
import pytest
from PIL import Image

from stce_jax.convert.following import follow, keep
from stce_jax.convert.preprocessing import Preprocessing
from stce_jax.data import crops
from stce_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset
from stce_jax.errors import ConfigError
from stce_jax.training import assemble as runs
from stce_jax.training import preprocessing
from stce_jax.workdir import config as configuration

HALF = (0.5, 0.5, 0.5)
SEEN = Preprocessing((32, 32), HALF, HALF, "bilinear", 0.875)


def config_of(*overrides):
    return runs.load_config("default", ["--config.init_from=W", *overrides])


def test_what_is_open_follows_the_weights():
    config, followed, differing = follow(config_of(), SEEN, IMAGENET_MEAN, IMAGENET_STD)
    assert (config.augment.mean, config.augment.std, config.augment.eval_interpolation) == (HALF, HALF, "bilinear")
    (line,) = followed
    assert line == (
        "as the weights were trained: augment.mean 0.5,0.5,0.5, augment.std 0.5,0.5,0.5, "
        "augment.eval_interpolation bilinear"
    )
    assert differing == [] and config.is_locked
    runs.check_options(config)
    again = configuration.from_json(configuration.to_json(config))
    assert configuration.differences(config, again) == []


def test_what_is_given_stays_and_is_told():
    given = ("--config.augment.mean=0.1,0.2,0.3", "--config.augment.eval_interpolation=bicubic")
    config, followed, differing = follow(config_of(*given), SEEN, (0.1, 0.2, 0.3), IMAGENET_STD)
    assert tuple(config.augment.mean) == (0.1, 0.2, 0.3) and config.augment.std == HALF and len(followed) == 1
    assert differing == [
        "mean is 0.1,0.2,0.3, the weights were trained with 0.5,0.5,0.5",
        "eval_interpolation is bicubic, the weights were trained with bilinear",
    ]


def test_what_agrees_or_is_not_known_changes_nothing():
    config = config_of()
    same = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bicubic", crop_fraction=0.875)
    for seen in (same, Preprocessing()):
        assert follow(config, seen, IMAGENET_MEAN, IMAGENET_STD) == (config, [], [])
    other = follow(config, Preprocessing(crop_fraction=0.9), IMAGENET_MEAN, IMAGENET_STD)
    assert other[2] == ["eval_crop_fraction is 0.875, the weights were evaluated with 0.9"]


def test_a_run_that_resumes_keeps_what_it_took_from_the_weights():
    saved, _, _ = follow(config_of(), SEEN, IMAGENET_MEAN, IMAGENET_STD)
    assert configuration.differences(saved, keep(config_of(), saved)) == []
    another = runs.load_config("default", ["--config.init_from=V"])
    assert keep(another, saved) is another
    given = config_of("--config.augment.std=1,1,1")
    assert tuple(keep(given, saved).augment.std) == (1, 1, 1)


@pytest.mark.parametrize(
    "override, words",
    [
        ("mean=0.5,0.5", "config.augment.mean is (0.5, 0.5); it must be three numbers"),
        ("std=0,0.1,0.1", "each of config.augment.std is 0"),
        ("eval_interpolation=magic", "config.augment.eval_interpolation is 'magic'; it must be one of bicubic"),
    ],
)
def test_options_that_cannot_be(override, words):
    with pytest.raises(ConfigError) as caught:
        runs.load_config("default", [f"--config.augment.{override}"])
    assert words in str(caught.value)


def test_configs_of_earlier_versions_lack_these_keys():
    config = runs.load_config("digits")
    values = configuration.to_dict(config)
    for key in ("mean", "std", "eval_interpolation"):
        del values["augment"][key]
    for body in ("vit", "deit"):
        del values["model"]["body"][body]["norm_epsilon"]
    assert configuration.differences(configuration.from_dict(values), config) == []


def test_the_config_decides_how_images_are_seen():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    bilinear = Image.fromarray(image).resize((36, 24), Image.Resampling.BILINEAR)
    expected = np.asarray(bilinear)[:, 6:30]
    np.testing.assert_array_equal(crops.center_crop(image, 24, 1.0, "bilinear"), expected)
    words = ["--config.image_size=24", "--config.augment.eval_crop_fraction=1"]
    words += ["--config.augment.eval_interpolation=bilinear", "--config.augment.mean=0.5,0.5,0.5"]
    config = runs.load_config("default", words)
    view = preprocessing.view_options(config)
    assert view == {"size": 24, "fraction": 1.0, "interpolation": "bilinear"}
    seen = preprocessing.preprocess(image, mean=HALF, std=HALF, **view)
    np.testing.assert_allclose(seen, (expected / 255 - 0.5) / 0.5, atol=1e-5)
    dataset = Dataset(None, None, ("a",), ("a",), lambda: "print", IMAGENET_MEAN, IMAGENET_STD)
    changed = preprocessing.with_normalization(dataset, config)
    assert changed.mean == HALF and changed.std == IMAGENET_STD and changed.fingerprint == "print"
    plain = preprocessing.view_options(runs.load_config("default"))
    assert plain == {"size": 224, "fraction": 0.875, "interpolation": "bicubic"}
