"""ONNX Runtime gives a run's logits of real images, any number of them, clustering and normalisation inside."""

import json

import numpy as np
import pytest
from made_runs import TINY_VIT, logits_of, made_run
from real_images import real_images

from stce_jax.convert import formats
from stce_jax.data.crops import read_view
from stce_jax.errors import ConfigError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")

STCE = {"stem_widths": (8, 16), "stem_strides": (2, 2), "cell": (2, 2), **TINY_VIT}
MODELS = {
    "stce": ("vit_ti_stce", STCE),
    "stce, positions fixed, bfloat16": ("vit_ti_stce", {**STCE, "position_embedding": "sincos2d", "dtype": "bfloat16"}),
    "deit": ("deit_ti", {"patch_size": 8, **TINY_VIT}),
    "ingredients": (
        "vit_ti_patch",
        {"patch_size": 8, "position_embedding": "rope_mixed", "registers": 2, "layer_scale": 0.1, "qk_norm": True}
        | {"norm": "rmsnorm", "mlp": "swiglu", **TINY_VIT},
    ),
    "topk": ("vit_ti_patch", {"patch_size": 8, **TINY_VIT, "reduction": "topk", "blocks": (0,)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_gives_the_runs_logits_of_real_images(tmp_path, capfd, name):
    preset, options = MODELS[name]
    run = made_run(preset, **options)
    done = formats.write("onnx", tmp_path, run, ema=False)
    assert done["dtype"] == "float32" and done["only_logits"] and bool(done["notes"]) == ("bfloat16" in name)
    assert done["by"] == f"ONNX Runtime {onnxruntime.__version__}" and done["batch_sizes"] == [1, 3]
    description = json.loads((tmp_path / "model.json").read_text())
    assert description["input"]["dtype"] == "uint8" and description["inputs"] == ["pixels"]
    capfd.readouterr()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert capfd.readouterr().err == "", "ONNX Runtime warns wherever the file is opened"
    (given,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("pixels", "tensor(uint8)", [32, 32, 3])
    assert (logits.name, logits.type, logits.shape[-1]) == ("logits", "tensor(float)", 5)
    image = description["image"]
    pixels = [read_view(one, size=image["size"], fraction=image["crop_fraction"]) for one in real_images(5)]
    share = 2**-5 if "bfloat16" in name else 1e-5
    for count in (1, 2, 5):
        batch = np.stack(pixels[:count])
        expected = logits_of(run, batch)
        (found,) = session.run(["logits"], {"pixels": batch})
        np.testing.assert_allclose(found, expected, atol=share * max(1, np.abs(expected).max()))


def test_an_operation_without_a_counterpart_is_one_line(tmp_path):
    run = made_run("vit_ti_patch", patch_size=8, **TINY_VIT, reduction="ats", blocks=(0,))
    with pytest.raises(ConfigError, match=r"jax2onnx \S+ cannot convert this model: .*; give --format=jax") as refused:
        formats.write("onnx", tmp_path, run, ema=False)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())
