"""DeiT against timm's numbers, plain and distilled, its sizes, its weights at another grid, and token reductions."""

import functools

import jax
import numpy as np
import pytest
from body_checks import check_refused, images, noise
from flax import linen as nn
from flax import traverse_util
from golden_bodies import check_body, count_parameters, golden_model

from stce_jax.analysis.costs import count_reduction
from stce_jax.analysis.drawing.introspection import class_attention
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.training.state import abstract_variables
from stce_jax.workdir.weights import flatten

TINY = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 24, "patch_size": 4, "drop_path": 0.0}
PARAMETERS = {"deit_s": 22_050_664, "deit_s_distilled": 22_436_432}  # 1000 classes


@pytest.mark.slow
def test_a_distilled_model_equals_the_golden_numbers():
    arrays, model, variables, gradients = golden_model("deit_distilled_tiny")
    activations = {"norm": arrays["act/norm"][:, :2]}  # the last block gives no others
    check_body(arrays, model, variables, gradients, activations)


@pytest.mark.slow
def test_a_plain_model_equals_the_golden_numbers():
    arrays, model, variables, gradients = golden_model("vit_timm_tiny")
    activations = {"embedding": "patch_embed", "blocks_0": "blocks.0", "blocks_1": "blocks.1"}
    activations = {own: arrays[f"act/{theirs}"] for own, theirs in activations.items()}
    activations["blocks_1"] = activations["blocks_1"][:, :1]  # the class token alone is read
    check_body(arrays, model, variables, gradients, activations)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_sizes_have_their_parameters(name):
    model = create_model(name, num_classes=1000)
    assert count_parameters(model, 224) == PARAMETERS[name]
    # The published figure counts all tokens of the last block, most of which the model spares.
    assert round(count_reduction(model, 224)["all_tokens"] / 1e9, 1) == 4.6


def test_its_names_and_options():
    sizes = ("ti", "s", "b", "ti_distilled", "s_distilled", "b_distilled")
    assert {f"deit_{size}{end}" for size in sizes for end in ("", "_stce", "_patch")} < set(list_models("deit_*"))
    assert not list_models("*_linear_patch")
    assert model_options("deit_b")["mlp_dim"] == 4 * 768 and model_options("deit_ti_distilled_stce")["distilled"]
    assert model_options("deit_s")["patch_size"] == 16 and model_options("deit_s")["drop_path"] == 0.1
    assert create_model("deit_s_stce", num_classes=2).grid(224, 224) == (14, 14)


@functools.cache
def tiny(**options):
    """(a tiny distilled model, variables of noise)."""
    model = create_model("deit_ti_distilled", num_classes=3, image_size=16, **{**TINY, **options})
    return model, noise(model)


@pytest.mark.slow
def test_logits_are_the_mean_of_two_heads_and_features_that_of_two_tokens():
    model, variables = tiny()
    outputs, training, features, tokens = jax.jit(
        lambda variables: (
            model.apply(variables, images(16, 16), train=False),
            model.apply(variables, images(16, 16), train=True),
            model.apply(variables, images(16, 16), train=False, method="features"),
            model.apply(variables, images(16, 16), train=False, method="tokens"),
        )
    )(variables)
    params = jax.device_get(variables["params"])
    assert tokens.leading == 2 and tokens.shape == (2, 18, 16) and tokens.grid == (4, 4)
    heads = [
        tokens[:, place] @ params[name]["kernel"] + params[name]["bias"]
        for place, name in enumerate(("head", "distillation_head"))
    ]
    np.testing.assert_allclose(outputs, (heads[0] + heads[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(training, outputs, atol=1e-5)
    np.testing.assert_allclose(features, (tokens[:, 0] + tokens[:, 1]) / 2, atol=1e-5)
    headless = model.clone(num_classes=0)
    assert "distillation_head" not in abstract_variables(headless, 16)["params"]


@pytest.mark.slow
def test_scanned_and_remat_models_have_the_same_logits():
    model, variables = tiny()
    expected = jax.jit(lambda variables: model.apply(variables, images(16, 16), train=False))(variables)
    scanned = model.clone(scan_layers=True, remat=True)
    arrays, _ = scanned.fit_weights(
        flatten(variables), traverse_util.flatten_dict(abstract_variables(scanned, 16), sep="/"), None
    )
    stacked = traverse_util.unflatten_dict(arrays, sep="/")
    found = jax.jit(lambda variables: scanned.apply(variables, images(16, 16), train=False))(stacked)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_positions_of_both_tokens_stay_where_others_follow_the_grid():
    model, variables = tiny()
    larger = model.clone(image_size=(24, 32))
    expected = {"params/position_embedding": np.empty((1, 2 + 6 * 8, 16))} | {
        path: leaf for path, leaf in flatten(variables).items() if path != "params/position_embedding"
    }
    found = flatten(variables)
    arrays, note = larger.fit_weights(found, expected, None)
    assert note == "position embedding interpolated from 4x4 to 6x8"
    positions = arrays["params/position_embedding"]
    assert positions.shape == (1, 50, 16)
    np.testing.assert_array_equal(positions[:, :2], found["params/position_embedding"][:, :2])


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCTIONS)
def test_token_reductions_pass_both_tokens_on_as_they_are(name):
    model, variables = tiny(reduction=name, blocks=(1,), keep_rate=0.5)
    (entered, left), logits = jax.jit(lambda: _through_reduction(model, variables))()
    assert entered.shape[1] == 18 and left.shape[1] == 2 + model.token_counts(16, 16)[1] < 18
    assert left.leading == 2
    np.testing.assert_array_equal(left[:, :2], entered[:, :2])
    assert logits.shape == (2, 3) and np.isfinite(logits).all()


def _through_reduction(model, variables):
    """((tokens that enter a model's reduction, those that leave it), logits)."""
    seen = []

    def watch(run, args, kwargs, context):
        given = run(*args, **kwargs)
        if isinstance(context.module, tuple(REDUCTIONS.values())) and context.method_name == "__call__":
            seen.append((args[0], given))
        return given

    with nn.intercept_methods(watch):
        logits = model.apply(variables, images(16, 16), train=False)
    (found,) = seen
    return found, logits


@pytest.mark.slow
def test_attention_of_the_class_token_is_drawn_without_the_leading_tokens():
    model, variables = tiny()
    assert jax.eval_shape(lambda: class_attention(model, variables, images(16, 16))).shape == (3, 2, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "a distilled model reads its two tokens, not their mean; give pooling=class"),
        ({"heads": 3}, "width 16 cannot be divided among 3 heads"),
        ({"distilled": 1}, "distilled is 1; it must be of type bool"),
        ({"image_size": 18}, "16 or 20 would work"),
        ({"reduction": "topk", "scan_layers": True}, "scan_layers needs blocks of one shape"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("deit_ti_distilled", message, **{"image_size": 16, **TINY, **options})
