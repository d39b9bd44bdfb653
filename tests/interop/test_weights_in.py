"""Weights of timm and PyTorch, made by them: what comes in computes what they compute."""

import pickle

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from weight_sources import noise  # noqa: E402

import stce_jax  # noqa: E402
from stce_jax.convert import layouts, pth_to_safetensors  # noqa: E402
from stce_jax.convert.sources import open_source  # noqa: E402
from stce_jax.errors import CheckpointError  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}


def made(**options):
    """A ViT of timm with weights of noise, and images."""
    torch.manual_seed(0)
    model = VisionTransformer(**SIZES | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return model, images, logits


def check(loaded, images, logits):
    found = jax.jit(lambda variables, x: loaded.model.apply(variables, x, train=False))(loaded.variables, images)
    np.testing.assert_allclose(np.asarray(found), logits, atol=2e-5)


def test_a_folder_that_timm_writes(tmp_path):
    model, images, logits = made()
    model.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9}
    model.pretrained_cfg |= {"interpolation": "bicubic", "num_classes": 7, "architecture": "vit_small_patch16_224"}
    arguments = {key: value for key, value in SIZES.items() if key != "num_classes"}
    timm.models.save_for_hf(model, tmp_path / "hub", model_args=arguments, safe_serialization=True)
    loaded = stce_jax.load_weights(tmp_path / "hub")
    check(loaded, images, logits)
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5) and loaded.preprocessing.crop_fraction == 0.9


def test_pooling_the_mean_without_a_class_token(tmp_path):
    model, images, logits = made(class_token=False, global_pool="avg", fc_norm=False)
    np.savez(tmp_path / "a.npz", **{name: array.numpy() for name, array in model.state_dict().items()})
    check(stce_jax.load_weights(tmp_path / "a.npz", heads=3), images, logits)


@pytest.mark.parametrize(
    "options",
    [
        {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
        {"reg_tokens": 3, "qk_norm": True},
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "reg_tokens": 1, "init_values": 0.1},
    ],
    ids=["no positions in front", "positions of all", "mean"],
)
def test_registers_layer_scale_and_normed_queries(tmp_path, options):
    model, images, logits = made(**options)
    np.savez(tmp_path / "a.npz", **{name: array.numpy() for name, array in model.state_dict().items()})
    loaded = stce_jax.load_weights(tmp_path / "a.npz", heads=3)
    check(loaded, images, logits)
    assert loaded.model.registers == options["reg_tokens"]


@pytest.mark.parametrize("big_vision", [False, True])
def test_an_npz_of_augreg_is_read_as_timm_reads_it(tmp_path, big_vision):
    """timm's own loader of that format is the judge."""
    arrays, ours, _ = noise("augreg_npz", classes=7, width=48, depth=2, heads=3, mlp_dim=192)
    if big_vision:
        renamed = {}
        for name, array in arrays.items():
            for new, old in (("Attention_0", "Attention_1"), ("Norm_1", "Norm_2"), ("Block_0", "Block_3")):
                name = name.replace(old, new)
            renamed["params/" + name.replace("Transformer/posembed_input/", "")] = array
        arrays = renamed
    np.savez(tmp_path / "a.npz", **arrays)
    model = VisionTransformer(**SIZES).eval()
    model.load_pretrained(str(tmp_path / "a.npz"))
    opened = open_source(tmp_path / "a.npz")
    theirs = {name: array.numpy() for name, array in model.state_dict().items()}
    found, left = layouts.to_ours("timm_vit", theirs, {**opened.options, "distilled": False})
    assert left == [] and found.keys() == opened.arrays.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, opened.arrays[path], err_msg=path)
        np.testing.assert_array_equal(array, ours[path], err_msg=path)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    loaded = stce_jax.load_weights(tmp_path / "a.npz")
    found = jax.jit(lambda variables, x: loaded.model.apply(variables, x, train=False))(loaded.variables, images)
    np.testing.assert_allclose(np.asarray(found), logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())


# --- the converter


@pytest.mark.parametrize("wrapped", ["bare", "model", "module"])
def test_a_pth_becomes_safetensors(tmp_path, capsys, wrapped):
    model, images, logits = made()
    saved = model.state_dict()
    if wrapped == "module":
        saved = {"state_dict": {f"module.{name}": tensor for name, tensor in saved.items()}, "epoch": 3}
    elif wrapped == "model":
        saved = {"model": {**saved, "names": ["a"]}}
    torch.save(saved, tmp_path / "a.pth")
    assert pth_to_safetensors.main([str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    assert ("left out, as no tensors: 'names'" in capsys.readouterr().out) == (wrapped == "model")
    check(stce_jax.load_weights(tmp_path / "a.safetensors", heads=3), images, logits)


class Bomb:
    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return open, (self._path, "w")


def test_what_is_no_tensor_is_never_unpickled(tmp_path, capsys):
    mark, output = tmp_path / "mark", tmp_path / "a.safetensors"
    torch.save({"model": Bomb(mark)}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "text.pth").write_bytes(b"no pickle")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("bomb", "plain", "text", "list"):
        assert pth_to_safetensors.main([str(tmp_path / f"{name}.pth"), str(output)]) == 4, name
        error = capsys.readouterr().err
        assert error.startswith("stce: ") and error.count("\n") == 1, error
        assert not mark.exists() and not output.exists()
    assert pth_to_safetensors.main([str(tmp_path / "none.pth"), str(output)]) == 2


@pytest.mark.parametrize("kind", ["meta", "nested", "quantised"])
def test_what_is_no_plain_tensor_is_named(tmp_path, kind):
    torch = pytest.importorskip("torch")
    tensor = {
        "meta": lambda: torch.zeros(2, device="meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "quantised": lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
    }[kind]()
    torch.save({"odd": tensor}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no plain tensor|cannot read") as caught:
        pth_to_safetensors.convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value) and not (tmp_path / "a.safetensors").exists()
