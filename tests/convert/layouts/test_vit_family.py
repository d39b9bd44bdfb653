"""Names of the plain ViT in timm and other libraries: read to the golden logits, written back to the bit."""

import numpy as np
import pytest
from layout_checks import check_layout

from stce_jax.convert import layouts
from stce_jax.errors import CheckpointError


@pytest.mark.parametrize(
    "name, layout, config",
    [
        (
            "vit_hf_tiny",
            "hf_vit",
            {"model_type": "vit", "num_attention_heads": 3, "layer_norm_eps": 1e-6, "hidden_act": "gelu"},
        ),
        ("vit_table3_naflex_tiny", "timm_naflex", {"model_args": {"num_heads": 3}}),
        ("vit_timm_tiny", "timm_vit", {"model_args": {"num_heads": 3}}),
        ("deit_distilled_tiny", "timm_vit", {"model_args": {"num_heads": 3}}),
    ],
    ids=["hugging face", "naflex", "timm", "distilled"],
)
def test_the_golden_models(name, layout, config):
    check_layout(name, layout, config)


def test_the_class_tokens_position_is_added_to_it_where_there_is_no_place():
    options = {"patch_size": 8, "depth": 0, "pooling": "class"}
    rng = np.random.default_rng(0)
    shapes = {"class_token": (1, 1, 4), "position_embedding": (1, 5, 4), "embedding/projection/kernel": (192, 4)}
    shapes |= {"embedding/patch_norm/scale": (192,), "embedding/patch_norm/bias": (192,)}
    shapes |= {f"{norm}/{part}": (4,) for norm in ("embedding/norm", "norm") for part in ("scale", "bias")}
    shapes |= {"embedding/projection/bias": (4,)}
    ours = {f"params/{path}": rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    theirs = layouts.to_theirs("timm_naflex", ours, options)
    positions = ours["params/position_embedding"]
    np.testing.assert_array_equal(theirs["embeds.cls_token"], ours["params/class_token"] + positions[:, :1])
    np.testing.assert_array_equal(theirs["embeds.pos_embed"].reshape(1, 4, 4), positions[:, 1:])
    with pytest.raises(CheckpointError, match="a square of positions alone"):
        layouts.to_theirs("timm_naflex", ours | {"params/position_embedding": positions[:, :4]}, options)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"model_type": "yolos"}, "model_type='yolos'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"num_attention_heads": "3"}, "num_attention_heads='3'"),
        ({"model_type": "vit", "layer_norm_eps": -1}, "layer_norm_eps=-1"),
    ],
)
def test_what_a_config_of_hugging_face_may_not_say(config, words):
    names = {"embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4)}
    names |= {"encoder.layer.0.intermediate.dense.weight": (16, 8), "encoder.layer.0.layernorm_before.weight": (8,)}
    arrays = {f"vit.{name}": np.zeros(shape, np.float32) for name, shape in names.items()}
    with pytest.raises(CheckpointError) as caught:
        layouts.options_of("hf_vit", arrays, config)
    assert words in str(caught.value) and "\n" not in str(caught.value)
