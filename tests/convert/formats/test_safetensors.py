"""The format safetensors: out and in again, exactly; the two files are the model."""

import dataclasses
import json
import os

import numpy as np
import pytest
from made_runs import TINY_VIT, logits_of, made_run, random_pixels

from stce_jax.convert import formats
from stce_jax.convert.initial import read_weights
from stce_jax.models.factory import create_model
from stce_jax.workdir.weights import flatten, read_file, unflatten

CONV = {"stem_widths": (8, 24), "stem_strides": (2, 2), **TINY_VIT}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(directory, run, what was said) of a ViT with BatchNorm."""
    run, directory = made_run("vit_ti_conv", image_size=16, **CONV), tmp_path_factory.mktemp("out")
    return directory, run, formats.write("safetensors", directory, run, ema=True)


def test_out_and_in_again_is_exact(written):
    directory, run, _ = written
    again, line = read_weights(str(directory / "weights.safetensors"), run.variables, run.model, run.class_ids)
    expected = flatten(run.variables)
    assert again.keys() == expected.keys() and "head of the same 5 classes" in line
    for name, array in expected.items():
        assert again[name].tobytes() == array.tobytes(), name


def test_the_files_alone_make_the_model(written):
    directory, run, done = written
    assert sorted(os.listdir(directory)) == ["SHA256SUMS", "model.json", "weights.safetensors"]
    description = json.loads((directory / "model.json").read_text())
    assert description["weights"] == "weights.safetensors" and description["moving_average"] is True
    assert description["input"]["dtype"] == "float32" and "before the model is called" in str(description["image"])
    model = create_model(num_classes=5, image_size=16, **description["model"])
    arrays, class_ids = read_file(directory / "weights.safetensors")
    assert class_ids == list(run.class_ids) == description["class_ids"]
    pixels, image = random_pixels(2, 16), description["image"]
    read = dataclasses.replace(
        run, model=model, variables=unflatten(arrays), mean=image["mean"], std=image["std"], config=None
    )
    np.testing.assert_allclose(logits_of(read, pixels), logits_of(run, pixels), atol=1e-6)
    assert done["step"] == 7 and done["dtype"] == "float32" and done["batch_sizes"] == [1, 3]
    assert done["difference"] < 1e-5 < done["greatest_logit"]
