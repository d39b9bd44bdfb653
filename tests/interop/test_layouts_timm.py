"""Layouts against timm and transformers: their weights here, ours there, the same logits, loaded strictly."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from stce_jax.convert import layouts  # noqa: E402
from stce_jax.models.factory import create_model  # noqa: E402
from stce_jax.workdir.weights import unflatten  # noqa: E402

SWIN = {"img_size": (36, 44), "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def with_noise(model):
    """A model in evaluation whose parameters and statistics are noise: no bias is 0, no scale 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for array in model.parameters():
            array += 0.1 * torch.randn(array.shape)
        for name, array in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                array += torch.rand(array.shape)
    return model.eval()


def check(layout, theirs, size, config=None, outputs=lambda given: given):
    """Their weights here and ours there give the same logits; `outputs`: logits of what their model gives."""
    arrays = {name: array.numpy() for name, array in theirs.state_dict().items()}
    assert layouts.recognise(arrays.keys()) == layout
    options = layouts.options_of(layout, arrays, config or {})
    found, left = layouts.to_ours(layout, arrays, options)
    assert not left
    model = create_model(layouts.LAYOUTS[layout].PRESET, num_classes=5, image_size=size, **options)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    ours = jax.jit(lambda variables: model.apply(variables, images, train=False))(unflatten(found))

    def logits():
        with torch.no_grad():
            return outputs(theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))).numpy()

    expected = logits()
    np.testing.assert_allclose(ours, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    back = {name: torch.from_numpy(array) for name, array in layouts.to_theirs(layout, found, options).items()}
    theirs.load_state_dict(back, strict=True)
    np.testing.assert_array_equal(logits(), expected)


def test_swin_of_timm():
    theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **SWIN)
    check("timm_swin", with_noise(theirs), SWIN["img_size"])


def test_mobilevit_of_timm():
    """Without counts of batches, which PyTorch does not ask for."""
    theirs = timm.create_model("mobilevit_xxs", num_classes=5)
    check("mobilevit", with_noise(theirs), (64, 96))


def test_deit_of_timm():
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32, depth=2)
    check("timm_vit", with_noise(theirs), (32, 32))


def test_swin_of_hugging_face(tmp_path):
    """By way of a folder as `save_pretrained` writes it, whatever the names in memory are."""
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    config = transformers.SwinConfig(
        image_size=48, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    theirs = with_noise(transformers.SwinForImageClassification(config))
    memory = {key: array.numpy().copy() for key, array in theirs.state_dict().items()}
    assert layouts.recognise(memory.keys()) == "hf_swin"
    theirs.save_pretrained(tmp_path)
    arrays = {key: array.numpy() for key, array in safetensors.load_file(tmp_path / "model.safetensors").items()}
    assert layouts.recognise(arrays.keys()) == "hf_swin"
    options = layouts.options_of("hf_swin", arrays, config.to_dict())
    found, left = layouts.to_ours("hf_swin", arrays, options)
    assert not left
    memory = layouts.LAYOUTS["hf_swin"].normal(memory)
    same, _ = layouts.to_ours("hf_swin", memory, layouts.options_of("hf_swin", memory, config.to_dict()))
    assert same.keys() == found.keys() and all((same[path] == array).all() for path, array in found.items())
    model = create_model("swin_t", num_classes=5, image_size=48, **options)
    images = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    ours = jax.jit(lambda variables: model.apply(variables, images, train=False))(unflatten(found))

    def logits(model):
        with torch.no_grad():
            return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()

    expected = logits(theirs)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
    back = layouts.to_theirs("hf_swin", found, options)
    safetensors.save_file(
        {key: torch.from_numpy(array) for key, array in back.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    again, report = transformers.SwinForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    np.testing.assert_array_equal(logits(again.eval()), expected)
