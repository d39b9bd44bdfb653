"""timm loads what `stce export --format=timm` wrote, prepares images as the run does, and gives its logits."""

import numpy as np
import pytest
from made_runs import TINY_VIT, logits_of, made_run, random_pixels
from PIL import Image
from real_images import real_images

from stce_jax.convert import formats
from stce_jax.training import assemble as runs
from stce_jax.verbs import export as verb

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

SWIN = {"widths": (16, 32), "depths": (2, 2), "heads": (2, 4), "window": 4}
MODELS = {
    "deit": ("deit_ti", {"patch_size": 8, **TINY_VIT}),
    "deit distilled": ("deit_ti_distilled", {"patch_size": 8, **TINY_VIT}),
    "vit, mean": ("vit_ti_patch", {"embedding": "linear_patch", "pooling": "mean", "patch_size": 8, **TINY_VIT}),
    "vit, odd hidden width": (
        "vit_ti_patch",
        {"embedding": "linear_patch", "patch_size": 4, **TINY_VIT, "mlp_dim": 41},
    ),
    "scan_layers": ("deit_ti", {"patch_size": 8, "scan_layers": True, **TINY_VIT}),
    "registers, scales and normed queries": (
        "deit_ti",
        {"patch_size": 8, "registers": 2, "layer_scale": 0.1, "qk_norm": True, **TINY_VIT},
    ),
    "RMSNorm": ("deit_ti", {"patch_size": 8, "norm": "rmsnorm", "qk_norm": True, **TINY_VIT}),
    "swin": ("swin_t", SWIN),
    "mobilevit": ("mobilevit_xxs", {}),
}


@pytest.fixture(params=MODELS)
def exported(request, tmp_path):
    """(folder, run, what was said)."""
    name, options = MODELS[request.param]
    run = made_run(name, class_names=("one", "two", "three", "four", "five"), image_size=64, **options)
    return tmp_path, run, formats.write("timm", tmp_path, run, ema=False, license="mit")


def test_timm_gives_the_runs_logits_of_real_images(exported):
    folder, run, done = exported
    assert done["by"] == f"timm {timm.__version__}" and done["difference"] <= 1e-5 * max(1, done["greatest_logit"])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    own = timm.data.resolve_model_data_config(model)
    assert (tuple(own["mean"]), tuple(own["std"])) == (run.mean, run.std) and own["crop_pct"] == 0.8
    assert own["input_size"] == (3, 64, 64) and own["interpolation"] == "bicubic"
    assert model.pretrained_cfg["license"] == "mit" and model.num_classes == 5
    transform = timm.data.create_transform(**own)
    images = real_images(4)
    theirs = torch.stack([transform(Image.fromarray(image)) for image in images])
    ours = np.stack([run.preprocess(image) for image in images])
    np.testing.assert_allclose(theirs.numpy().transpose(0, 2, 3, 1), ours, atol=1e-5)
    with torch.inference_mode():
        logits = model(theirs).numpy()
    expected = np.asarray(run.model.apply(run.variables, ours, train=False))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_timm_names_the_classes(exported):
    folder, run, _ = exported
    cfg = timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg
    assert tuple(cfg["label_names"]) == run.class_ids
    assert [cfg["label_descriptions"][name] for name in run.class_ids] == list(run.class_names)


def test_a_folder_with_an_odd_name(tmp_path, monkeypatch):
    """Of which `local-dir:` would take a part for an escape or a fragment."""
    name, options = MODELS["deit"]
    run = made_run(name, **options)
    monkeypatch.setattr(runs, "load_run", lambda *_: run)
    done = verb.export("W", tmp_path / "a %41#b?c [0]" / "out", format="timm")
    assert done["by"].startswith("timm ")
    assert done["greatest_logit"] == pytest.approx(np.abs(logits_of(run, random_pixels(1, 32))).max(), rel=10)
