"""Names, parameter counts, options and refusals of the model factory. A new model is tested by being listed."""

import jax
import jax.numpy as jnp
import pytest

import stce_jax
from stce_jax.errors import ConfigError
from stce_jax.models.bodies import BODIES
from stce_jax.models.factory import create_model, list_models, model_options, presets

# 100 classes, 224 pixels; the README's table.
PARAMETERS = {
    "vit_ti_patch": 4_658_596,
    "vit_ti_conv": 5_383_396,
    "vit_ti_conv1x1": 5_088_484,
    "vit_ti_earlyconv": 4_765_180,
    "vit_ti_stce": 4_628_740,
    "vit_s_patch": 18_162_916,
    "vit_s_conv": 21_355_876,
    "vit_s_conv1x1": 20_176_228,
    "vit_s_earlyconv": 18_886_804,
    "vit_s_stce": 17_997_508,
    "vit_b_patch": 85_878_628,
    "vit_b_conv": 99_233_380,
    "vit_b_conv1x1": 94_514_788,
    "vit_b_earlyconv": 89_364_676,
    "vit_b_stce": 85_442_116,
}


def shapes(model, size=224):
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


# All of the vision transformer's; of each other body, whose own tests count it, the first size with super tokens.
OTHERS = {body: next(iter(module.SIZES)) for body, module in BODIES.items() if body != "vit"}
COUNTED = [*list_models("vit_*"), *(f"{body}_{size}_stce" for body, size in OTHERS.items())]


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_parameters_of_every_model(name):
    logits, variables = shapes(create_model(name, num_classes=100))
    assert count(variables) == PARAMETERS.get(name, count(variables))
    assert logits.shape == (1, 100)


@pytest.mark.parametrize("name", list_models())
def test_every_embedding_of_a_body_gives_the_same_grid(name):
    body, size = presets()[name].body, 224
    own = create_model(next(one for one, preset in presets().items() if preset.body == body), num_classes=2)
    assert create_model(name, num_classes=2).grid(size, size) == own.grid(size, size)


def test_listing():
    assert set(list_models()) >= set(PARAMETERS)
    assert {"vit_s_conv", "vit_s_conv1x1"} <= set(list_models("vit_s_c*")) and "vit_s_stce" not in list_models("*_c*")
    assert stce_jax.list_models() == list_models()


# Table 7 of the paper: convolution modules before the clustering, and our counts beside its rounded ones.
@pytest.mark.slow
@pytest.mark.parametrize(
    "widths, strides, cell, parameters",
    [
        ((), (), 16, 17_866_852),
        ((16,), (1,), 16, 17_872_324),
        ((16,), (2,), 8, 17_872_324),
        ((16, 32), (2, 1), 8, 17_883_172),
        ((16, 32, 32, 64), (2, 1, 2, 1), 4, 17_923_396),
        ((16, 32, 32, 64, 64, 64), (2, 1, 2, 1, 2, 1), 2, 17_997_508),
        ((16, 32, 32, 64, 64, 64, 64), (2, 1, 2, 1, 2, 1, 2), 1, 18_034_564),
    ],
)
def test_rows_of_table_7(widths, strides, cell, parameters):
    model = create_model("vit_s_stce", num_classes=100, stem_widths=widths, stem_strides=strides, cell=cell)
    logits, variables = shapes(model)
    assert count(variables) == parameters
    assert model.embedding.grid(224, 224) == (14, 14) and logits.shape == (1, 100)


def test_stems_follow_an_overridden_width():
    assert model_options("vit_s_conv", width=64, heads=2)["stem_widths"] == (16, 32, 64, 64, 64)
    assert model_options("vit_s_earlyconv", width=64, heads=2)["stem_widths"] == (8, 16, 32, 64)
    assert model_options("vit_s_stce", width=64, heads=2)["stem_widths"] == (16, 32, 32, 64, 64, 64)


@pytest.mark.parametrize(
    "name, options, named",
    [
        ("vit_s_stec", {}, "there is no model 'vit_s_stec'"),
        ("vit_s_patch", {"iterations": 2}, "vit_s_patch has no option 'iterations'"),
        ("vit_s_stce", {"pooling": "max"}, "pooling is 'max'; it must be one of class, mean"),
        ("vit_s_stce", {"border": "wrap"}, "border is 'wrap'"),
        ("vit_s_stce", {"dtype": "int8"}, "dtype is 'int8'"),
        ("vit_s_stce", {"heads": 5}, "width 384 cannot be divided among 5 heads"),
        ("vit_s_stce", {"depth": 0}, "depth is 0; it must be a whole number between 1"),
        ("vit_s_stce", {"iterations": -1}, "iterations is -1; it must be a whole number between 0"),
        ("vit_s_stce", {"drop_path": 1.0}, "drop_path is 1.0"),
        ("vit_s_stce", {"cell": (0, 2)}, "cell is (0, 2)"),
        ("vit_s_stce", {"stem_widths": (16,)}, "one positive entry a module"),
        ("vit_s_stce", {"stem_widths": (16, "a"), "stem_strides": (2, 2)}, "stem_widths (16, 'a')"),
        ("vit_s_conv", {"stem_widths": (8, 8, 8, 8, 8)}, "must end with the model's width, 384"),
        ("vit_s_stce", {"width": 6, "heads": 2, "position_embedding": "sincos2d"}, "no multiple of 4"),
        ("vit_s_patch", {"image_size": 230}, "224 or 240 would work"),
        ("vit_s_patch", {"image_size": 0}, "image_size is 0; it must be a whole number between 1"),
        ("vit_s_patch", {"num_classes": -1}, "num_classes is -1"),
    ],
)
def test_refusals_name_the_cause(name, options, named):
    with pytest.raises(ConfigError) as error:
        create_model(name, **{"num_classes": 100, **options})
    assert named in str(error.value)
    assert "\n" not in str(error.value)
