"""Weights as other libraries keep them, made of golden files or of noise, for tests of what comes in."""

import json

import numpy as np
import pytest
import safetensors.numpy
from golden_bodies import golden_body

from stce_jax.convert import layouts
from stce_jax.convert.sources import open_source
from stce_jax.errors import CheckpointError
from stce_jax.models.factory import create_model
from stce_jax.training.state import abstract_variables
from stce_jax.workdir.weights import flatten

CLASSES, SIZE = 5, 32
TINY = {"patch_size": 8, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "pooling": "class"}
TIMM = {
    "architecture": "vit_small_patch16_224",
    "num_classes": CLASSES,
    "global_pool": "token",
    "model_args": {"img_size": [SIZE, SIZE], "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "pretrained_cfg": {
        "input_size": [3, SIZE, SIZE],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.25, 0.2],
    },
}
HUGGING_FACE = {"model_type": "vit", "image_size": SIZE, "num_attention_heads": 2, "hidden_act": "gelu"}
HUGGING_FACE |= {"layer_norm_eps": 1e-12, "qkv_bias": True, "id2label": {str(n): f"kind {n}" for n in range(CLASSES)}}


def golden_arrays(name):
    """({name: float32 array}, golden file) of a golden body."""
    arrays, _, weights = golden_body(name)
    return {key: array.astype(np.float32) for key, array in weights.items()}, arrays


def noise(layout="timm_vit", classes=CLASSES, **options):
    """({name in the layout: array of noise}, {path of ours: the same}, options) of a tiny model."""
    preset = layouts.LAYOUTS[layout].PRESET
    own = TINY | options
    model = create_model(preset, num_classes=classes, image_size=SIZE, **own)
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model, SIZE)
    arrays = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in _flat(shapes).items()}
    filled = {"distilled": False, **own}
    return layouts.to_theirs(layout, arrays, filled), arrays, own


def _flat(shapes):
    import jax

    return flatten(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))


def write_folder(folder, arrays, config=None, processor=None):
    """A folder of the hub."""
    folder.mkdir()
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    for name, value in (("config.json", config), ("preprocessor_config.json", processor)):
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    return folder


def refuse(source, words, error=CheckpointError):
    """Opening a source fails in one line with these words."""
    with pytest.raises(error) as caught:
        opened = open_source(source)
        opened.build()
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 1500, message
