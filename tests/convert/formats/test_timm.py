"""The format timm, as far as it needs no timm: config.json leaves nothing to defaults, weights come back to the bit."""

import json
import sys

import numpy as np
import pytest
import safetensors.numpy
from made_runs import MEAN, STD, TINY_VIT, made_run

from stce_jax.convert import formats, layouts
from stce_jax.convert.formats import timm
from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.training.state import abstract_variables
from stce_jax.workdir.weights import flatten

DEIT = {"patch_size": 8, **TINY_VIT}


def exported(directory, run):
    """(config.json, arrays) of a run in the format timm."""
    formats.write("timm", directory, run, ema=False, license="mit")
    return json.loads((directory / "config.json").read_text()), safetensors.numpy.load_file(
        directory / "model.safetensors"
    )


def test_config_json_says_all_that_timm_would_take_from_the_architecture(tmp_path):
    run = made_run("deit_ti", class_names=("one", 'tw"o', "three", "four", "five"), **DEIT)
    config, arrays = exported(tmp_path, run)
    assert config["architecture"] == "deit_small_patch16_224" and config["num_classes"] == 5
    assert config["label_names"] == list(run.class_ids)
    assert config["label_descriptions"][run.class_ids[1]] == 'tw"o'
    arguments, own = config["model_args"], config["pretrained_cfg"]
    assert arguments["img_size"] == [32, 32] and arguments["patch_size"] == 8 and arguments["embed_dim"] == 24
    assert (arguments["depth"], arguments["num_heads"], arguments["num_classes"]) == (2, 3, 5)
    assert int(arguments["mlp_ratio"] * 24) == 40
    assert own["mean"] == list(MEAN) and own["std"] == list(STD) and own["crop_pct"] == 0.8
    assert own["input_size"] == [3, 32, 32] and own["interpolation"] == "bicubic" and own["crop_mode"] == "center"
    assert (own["num_classes"], own["classifier"], own["license"]) == (5, "head", "mit")
    assert "augreg" not in json.dumps(config) and "in1k" not in own["tag"] and not own["custom_load"]
    assert arrays["patch_embed.proj.weight"].shape == (24, 3, 8, 8)


@pytest.mark.parametrize("hidden", range(20, 60))
def test_the_ratio_gives_the_hidden_width(hidden):
    for width in (24, 48, 100):
        assert int(width * timm._mlp_ratio(hidden, width)) == hidden


@pytest.mark.parametrize(
    "name, options",
    [
        ("deit_ti", {}),
        ("deit_ti_distilled", {}),
        ("vit_ti_patch", {"embedding": "linear_patch", "pooling": "mean"}),
        ("deit_ti", {"scan_layers": True}),
        ("deit_ti", {"registers": 2, "layer_scale": 0.1, "qk_norm": True}),
        ("deit_ti", {"registers": 1, "norm": "rmsnorm", "qk_norm": True, "pooling": "mean", "scan_layers": True}),
        ("deit_ti_distilled", {"layer_scale": 0.1}),
    ],
)
def test_out_and_in_again_is_exact(tmp_path, name, options):
    run = made_run(name, **DEIT | options)
    config, arrays = exported(tmp_path, run)
    layout = layouts.recognise(arrays.keys())
    arrays = getattr(layouts.LAYOUTS[layout], "normal", dict)(arrays)
    own = layouts.options_of(layout, arrays, config)
    found, left = layouts.to_ours(layout, arrays, own)
    assert not left
    model = create_model(layouts.LAYOUTS[layout].PRESET, num_classes=5, image_size=32, **own)
    assert found.keys() == flatten(abstract_shapes(model)).keys()
    if "scan_layers" in options:
        found, _ = run.model.fit_weights(found, flatten(run.variables), None)
    for path, array in flatten(run.variables).items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def abstract_shapes(model):
    import jax

    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract_variables(model, 32))


STCE = {"stem_widths": (8, 16), "stem_strides": (2, 2), "cell": (2, 2)}


@pytest.mark.parametrize(
    "name, options, named",
    [
        ("vit_ti_patch", DEIT, "the embedding patch, whose LayerNorm of each patch is in no PatchEmbed"),
        ("vit_ti_stce", {**STCE, **TINY_VIT}, "the embedding stce"),
        ("deit_ti", {**DEIT, "reduction": "topk", "blocks": (1,)}, "the token reduction topk"),
        ("deit_ti", {**DEIT, "position_embedding": "sincos2d"}, "positions of the kind sincos2d"),
        ("deit_ti", {**DEIT, "position_embedding": "rope_mixed"}, "positions of the kind rope_mixed"),
        ("deit_ti", {**DEIT, "mlp": "swiglu"}, "MLPs of the kind swiglu"),
        ("deit_ti_distilled", {**DEIT, "registers": 1}, "registers beside a distillation token"),
        ("deit_ti", {**DEIT, "norm_epsilon": 1e-3}, "LayerNorms with the epsilon 0.001"),
        ("cvt_13", {"widths": (8, 16, 16), "depths": (1, 1, 1), "heads": (1, 1, 1)}, "the body cvt"),
    ],
)
def test_what_timm_has_no_module_for(tmp_path, name, options, named):
    run = made_run(name, **options)
    with pytest.raises(ConfigError, match="timm has no module for ") as refused:
        formats.write("timm", tmp_path, run, ema=False)
    assert named in str(refused.value) and "give another format: --format=jax, " in str(refused.value)
    assert "\n" not in str(refused.value) and refused.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def options_of(body, **options):
    return {"body": body, "embedding": timm.TARGETS[body].embedding, "reduction": None, **options}


SWIN = {"widths": (16, 32), "depths": (2, 2), "heads": (2, 4), "window": 4, "mlp_ratio": 2, "downsample": "merging"}


def test_swin_becomes_timms():
    made = timm._swin({"patch_size": 4, **SWIN}, 32)
    assert made.arguments["embed_dim"] == 16 and made.arguments["num_heads"] == [2, 4]
    assert made.classifier == "head.fc" and made.features == 32
    for changed, named in (
        ({"widths": (16, 48)}, "whose widths do not double"),
        ({"downsample": "stce"}, "the downsampling stce"),
        ({"window": 7}, "windows of 7 over a map of 4x4"),
    ):
        with pytest.raises(ConfigError, match=named):
            timm._swin({"patch_size": 4, **SWIN, **changed}, 32)


def test_mobilevit_becomes_timms_in_the_published_sizes_alone():
    from stce_jax.models.factory import model_options

    own = {"name": "n", **options_of("mobilevit"), **model_options("mobilevit_xs", dropout=0.3)}
    assert timm._mobilevit(own, 256).name == "mobilevit_xs"
    with pytest.raises(ConfigError, match="a MobileViT of other options"):
        timm._mobilevit({**own, "head_width": 100}, 256)


def test_a_timm_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "out").mkdir()
    done = formats.write("timm", tmp_path / "out", made_run("deit_ti", **DEIT), ema=False)
    line = "not compared with timm, which cannot be imported (operator torchvision::nms does not exist)"
    assert line in done["notes"] and done["by"] == "a model of this package made of the files alone"
