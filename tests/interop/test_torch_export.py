"""The file of plain PyTorch computes what the run computes; see also tests/convert/test_torch_source.py."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden_files import assert_close
from made_runs import run_of
from PIL import Image
from torch_models import EMBEDDING, REDUCED, VARIANTS, tiny_model

from stce_jax.convert.formats import torch as form
from stce_jax.data import crops
from stce_jax.errors import CheckpointError
from stce_jax.models.bodies import BODIES
from stce_jax.recipe import augment
from stce_jax.training.assemble import build_model, load_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
CASES = {
    **{f"vit of {embedding}": ("vit", embedding, {}) for embedding in EMBEDDING},
    **{body: (body, BODIES[body].EMBEDDING, {}) for body in BODIES if hasattr(BODIES[body], "EMBEDDING")},
    **{name: ("vit", "patch", {"pooling": pooling, "reduction": own}) for name, (pooling, own) in REDUCED.items()},
    **VARIANTS,
    "another epsilon of LayerNorms": ("deit", "linear_patch", {"norm_epsilon": 0.05}),
}


def imported(directory):
    """The exported file as a module."""
    spec = importlib.util.spec_from_file_location("model", directory / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_runs(case, tmp_path):
    body, embedding, options = CASES[case]
    run = run_of(tiny_model(body, embedding, **options))
    done = form.write(tmp_path, run, ema=False)
    assert done["difference"] <= 1e-5 * max(1.0, done["greatest_logit"]) and not done["notes"]
    assert done["batch_sizes"] == [1, 3] and done["by"] == f"torch {torch.__version__}"


def test_the_file_alone_gives_the_runs_logits(tmp_path):
    """As its docstring says, by other pixels than the exporter's."""
    run = run_of(tiny_model("vit", "stce"))
    form.write(tmp_path, run, ema=False)
    module = imported(tmp_path)
    model = module.load()
    assert not model.training and run.class_names == module.CLASSES
    pixels = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), np.uint8)
    images = augment.normalize(pixels, mean=run.mean, std=run.std)
    expected = jax.jit(lambda images: run.model.apply(run.variables, images, train=False))(images)
    with torch.inference_mode():
        logits = model(module.normalise(torch.from_numpy(pixels)))
    assert_close(logits.numpy(), np.asarray(expected), 1e-5, "logits")


def test_the_program_of_the_page_about_weights_runs(tmp_path, monkeypatch, capsys):
    """docs/weights.md has it between `python - <<'END'` and `END`."""
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^python - <<'END'\n(.*?)^END$", page, re.DOTALL | re.MULTILINE)
    run = run_of(tiny_model("vit", "stce"))
    form.write(tmp_path, run, ema=False)
    Image.new("RGB", (40, 30), (200, 90, 30)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    exec(compile(program, "docs/weights.md", "exec"), {"__name__": "page"})
    monkeypatch.delitem(sys.modules, "model")
    assert capsys.readouterr().out.strip() in run.class_names


def test_its_own_reader_reads_what_safetensors_reads(tmp_path):
    form.write(tmp_path, run_of(tiny_model("svit", "svit")), ema=False)
    own = imported(tmp_path).read_safetensors(tmp_path / "model.safetensors")
    expected = safetensors.numpy.load((tmp_path / "model.safetensors").read_bytes())
    assert own.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(own[name].numpy(), array, err_msg=name)


def test_gradients_reach_every_parameter(tmp_path):
    form.write(tmp_path, run_of(tiny_model("vit", "stce")), ema=False)
    model = imported(tmp_path).build_model().train()
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("interpolation", form.INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(50, 70), (90, 41), (36, 36), (20, 33)])
def test_preprocessing_is_the_runs(tmp_path, shape, interpolation):
    """PyTorch's resizing rounds otherwise than Pillow's, by at most two of 255 levels."""
    run = run_of(tiny_model(), interpolation=interpolation)
    form.write(tmp_path, run, ema=False)
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BICUBIC))
    images = imported(tmp_path).preprocess(torch.from_numpy(pixels.copy()))
    expected = crops.read_view(pixels, size=32, fraction=0.875, interpolation=interpolation)
    levels = (images[0].permute(1, 2, 0).numpy() * run.std + run.mean) * 255
    assert images.shape == (1, 3, 32, 32) and images.dtype == torch.float32
    assert np.abs(levels - expected).max() <= 2.01


def test_a_run_in_bfloat16_is_compared_in_float32(tmp_path):
    sizes = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    words = [f"--config.model.body.vit.{key}={value}" for key, value in sizes.items()]
    config = load_config("digits", [*words, "--config.model.dtype=bfloat16"])
    run = run_of(build_model(config, 5))
    config.augment.eval_crop_fraction = 0.875
    run = run.__class__(**{**vars(run), "config": config})
    done = form.write(tmp_path, run, ema=False)
    assert done["dtype"] == "float32" and done["difference"] <= 1e-5 * done["greatest_logit"]


def test_other_weights_are_refused(tmp_path):
    run = run_of(tiny_model())
    form.write(tmp_path, run, ema=False)
    with pytest.raises(CheckpointError, match=r"model\.py differs from the run: logits by up to .*; nothing"):
        form.compare(tmp_path, run_of(tiny_model(), seed=1))
    arrays = dict(safetensors.numpy.load((tmp_path / "model.safetensors").read_bytes()))
    del arrays["norm.bias"]
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.py does not run: .*; nothing was exported"):
        form.compare(tmp_path, run)
