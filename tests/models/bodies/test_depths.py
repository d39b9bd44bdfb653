"""The layer of every parameter, by which layer-wise learning rates go."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from stce_jax.errors import ConfigError
from stce_jax.models.bodies import BODIES
from stce_jax.models.bodies.depths import layers_of
from stce_jax.models.factory import create_model, model_options

TINY = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 16}


def layers(model, size):
    """({path: layer}, the last layer) of a model's parameters."""
    images = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    flat = traverse_util.flatten_dict(shapes)
    layer_of, last = layers_of(model, flat)
    return {"/".join(path): layer_of(path, leaf.shape) for path, leaf in flat.items()}, last


def beit(path, depth):
    """BEiT's rule in timm's names, written out for ours."""
    top = path.split("/")[0]
    if top in ("class_token", "position_embedding", "embedding"):
        return 0
    return int(top.removeprefix("blocks_")) + 1 if top.startswith("blocks_") else depth + 1


@pytest.mark.parametrize("name", ["vit_ti_stce", "deit_ti_distilled"])
def test_layers_of_a_vision_transformer_are_beits(name):
    options = {**TINY, "stem_widths": (8, 16), "stem_strides": (2, 2)} if name == "vit_ti_stce" else TINY
    found, last = layers(create_model(name, num_classes=7, image_size=32, **options), 32)
    assert last == 4
    found.pop("distillation_token", None)
    assert found == {path: beit(path, 3) for path in found}
    assert set(found.values()) == {0, 1, 2, 3, 4}


def test_stacked_blocks_have_a_layer_for_each_slice():
    model = create_model("vit_ti_patch", num_classes=7, image_size=32, scan_layers=True, **TINY)
    found, last = layers(model, 32)
    kernel = found["blocks/mlp/in/kernel"]
    assert last == 4 and kernel.shape == (3, 1, 1) and kernel.ravel().tolist() == [1, 2, 3]
    assert found["blocks/mlp/in/bias"].shape == (3, 1)
    assert found["head/kernel"] == 4 and found["embedding/projection/kernel"] == 0


def simmim(path, depths):
    """SimMIM's rule for Swin: what reduces the map behind a stage belongs to its last block."""
    top = path.split("/")[0]
    if top in ("embedding", "embedding_norm"):
        return 0
    if top.startswith("downsampling_"):
        return sum(depths[: int(top[-1]) + 1])
    return int(top.removeprefix("blocks_")) + 1 if top.startswith("blocks_") else sum(depths) + 1


def test_layers_of_swin_are_simmims_over_all_stages():
    depths = (2, 1, 3, 2)
    options = {"widths": (8, 16, 32, 64), "depths": depths, "heads": (1, 2, 2, 2)}
    found, last = layers(create_model("swin_t", num_classes=7, image_size=64, **options), 64)
    assert last == 9 and found == {path: simmim(path, depths) for path in found}
    assert found["downsampling_1/projection/kernel"] == found["blocks_2/mlp/in/kernel"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cvt", "cmt", "mobilevit", "dat"])  # each with parts of its own between the stages
def test_layers_of_staged_bodies_rise_from_the_embedding_to_the_head(name):
    preset = f"{name}_{min(BODIES[name].SIZES)}"
    model = create_model(preset, num_classes=7, image_size=64)
    found, last = layers(model, 64)
    blocks = model_options(preset)
    if name == "mobilevit":
        inner = [found[path] for path in found if re.fullmatch(r"blocks_\d/layers_\d/qkv/kernel", path)]
        assert sorted(inner) == list(range(1, sum(blocks["depths"]) + 1))
    else:
        numbers = {int(path.split("/")[0][7:]) for path in found if path.startswith("blocks_")}
        assert all(found[path] == int(path.split("/")[0][7:]) + 1 for path in found if path.startswith("blocks_"))
        assert last == max(numbers) + 2
    assert all(0 <= layer <= last for layer in found.values())
    assert found["head/kernel"] == found["norm/scale"] == last
    assert all(layer == 0 for path, layer in found.items() if path.startswith("embedding/"))
    between = [path for path in found if re.match("(downsampling|halving|merging)_", path)]
    assert all(1 <= found[path] < last for path in between)


def test_a_body_without_blocks_has_no_layers():
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(3)(images)

    with pytest.raises(ConfigError, match="layer_decay goes by blocks, and Flat has none"):
        layers_of(Flat(), [("Dense_0", "kernel")])


def test_a_body_of_somebodys_is_counted_by_its_names():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return images

    paths = [("blocks_0", "a"), ("blocks_4", "a"), ("head", "kernel"), ("token",)]
    layer_of, last = layers_of(Own(), paths)
    assert last == 6 and [int(np.asarray(layer_of(path, ()))) for path in paths] == [1, 5, 6, 0]
