"""Weights of other libraries fitted to a model: other sizes, patches, heads and classes."""

import numpy as np
import pytest
import safetensors.numpy
from weight_sources import HUGGING_FACE, SIZE, noise, write_folder

import stce_jax
from stce_jax.convert.initial import read_weights
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.models.factory import create_model
from stce_jax.training.state import abstract_variables


def fitted(source, model, class_ids=("a", "b", "c")):
    return read_weights(str(source), abstract_variables(model, model.image_size[0]), model, class_ids)


def other(**options):
    size = options.pop("image_size", SIZE)
    own = {"patch_size": 8, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "norm_epsilon": 1e-12} | options
    return create_model("deit_s", num_classes=3, image_size=size, **own)


def test_a_run_begins_with_other_patches_and_a_new_head(tmp_path):
    theirs, ours, _ = noise("hf_vit")
    folder = write_folder(tmp_path / "a", theirs, HUGGING_FACE)
    found, line = fitted(folder, other(patch_size=4))
    assert found["params/embedding/projection/kernel"].shape == (48, 16)
    assert found["params/position_embedding"].shape == (1, 65, 16)
    assert "params/head/kernel" not in found
    assert line == (
        f"begins with 30 arrays of {folder} (Hugging Face's ViT or DeiT), patch kernel resampled from 8x8 to 4x4, "
        "position embedding interpolated from 4x4 to 8x8, new head for 3 classes (there: of other classes)"
    )
    assert found["params/norm/scale"].tobytes() == ours["params/norm/scale"].tobytes()


def test_options_that_no_shape_tells_are_compared(tmp_path):
    theirs, _, _ = noise("hf_vit")
    folder = write_folder(tmp_path / "a", theirs, HUGGING_FACE)
    with pytest.raises(CheckpointError, match="heads is 2 in it, the model wants 4"):
        fitted(folder, other(heads=4))
    assert "note: norm_epsilon is 1e-12 in it, the model has 1e-06" in fitted(folder, other(norm_epsilon=1e-6))[1]
    safetensors.numpy.save_file(theirs, tmp_path / "bare.safetensors")  # which does not say its heads
    assert "norm_epsilon" not in fitted(tmp_path / "bare.safetensors", other(heads=4, norm_epsilon=1e-6))[1]


def test_a_distilled_models_weights_for_a_plain_one_and_back(tmp_path):
    theirs, ours, _ = noise("timm_vit", distilled=True)
    safetensors.numpy.save_file(theirs, tmp_path / "a.safetensors")
    found, line = fitted(tmp_path / "a.safetensors", other(image_size=48))
    assert "without the distillation token and its head" in line and "interpolated from 4x4 to 6x6" in line
    kept = found["params/position_embedding"]
    assert kept.shape == (1, 37, 16) and kept[:, 0].tobytes() == ours["params/position_embedding"][:, 0].tobytes()
    theirs, _, _ = noise("timm_vit")
    safetensors.numpy.save_file(theirs, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="the model has a distillation token, the weights have none"):
        fitted(tmp_path / "b.safetensors", other(distilled=True))


@pytest.mark.slow
def test_a_run_and_an_own_file_are_loaded_too(tiny_run, tmp_path):
    workdir, _ = tiny_run
    loaded, run = stce_jax.load_weights(workdir), stce_jax.load_run(workdir)
    assert loaded.class_ids == run.class_ids and loaded.preprocessing.mean == run.mean
    larger = stce_jax.load_weights(workdir, image_size=24)
    assert larger.model.image_size == (24, 24) and "interpolated from 2x2 to 3x3" in larger.said
    from stce_jax.workdir.weights import save_weights

    save_weights(tmp_path / "own.safetensors", run.variables, run.class_ids)
    own = stce_jax.load_weights(tmp_path / "own.safetensors", model=run.model)
    np.testing.assert_array_equal(own.variables["params"]["head"]["bias"], run.variables["params"]["head"]["bias"])
    with pytest.raises(CheckpointError, match="does not say of which model it is"):
        stce_jax.load_weights(tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match="not both"):
        stce_jax.load_weights(tmp_path / "own.safetensors", model=run.model, heads=2)
    with pytest.raises(ConfigError, match="leave out heads"):
        stce_jax.load_weights(workdir, heads=2)
