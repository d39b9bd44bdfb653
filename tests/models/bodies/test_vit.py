"""The vision transformer: equal to plain NumPy, and equal to itself under every option that must not change it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from helpers import initial

from stce_jax.models.factory import create_model

IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
SMALL = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
STCE = {**SMALL, "stem_widths": (6, 8), "stem_strides": (2, 1), "cell": 2}


def small(name="vit_ti_stce", **options):
    base = STCE if name == "vit_ti_stce" else {**SMALL, "patch_size": 4}
    return create_model(name, num_classes=5, image_size=16, **{**base, **options})


def init(model, images=IMAGES):
    return initial(model, images, train=False)


def apply(model, variables, images=IMAGES, **options):
    return jax.jit(lambda v, x: model.apply(v, x, train=False, **options))(variables, images)


@pytest.mark.slow
def test_whole_patch_model_equals_numpy():
    model = small("vit_ti_patch")
    variables = init(model)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) * 3, variables["params"])
    tokens = numpy_reference.patch_embed(IMAGES.astype(float), params["embedding"], 4)
    expected = numpy_reference.vision_transformer(tokens, params, heads=2)
    actual = apply(model, {"params": jax.tree.map(np.float32, params)}, IMAGES)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"remat": True}, {"scan_layers": True}, {"remat": True, "scan_layers": True}])
def test_remat_and_scan_change_nothing(options):
    plain, other = small(drop_path=0.5), small(drop_path=0.5, **options)
    variables = init(plain)
    params = dict(variables["params"])

    def loss(params, model):
        rngs = {"dropout": jax.random.key(1)}
        logits, _ = model.apply({**variables, "params": params}, IMAGES, train=True, rngs=rngs, mutable=["batch_stats"])
        return (logits**2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, plain)
    if "scan_layers" in options:

        def stacked(tree):
            blocks = [tree.pop(f"blocks_{index}") for index in range(3)]
            return {**tree, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

        params, gradient = stacked(params), stacked(dict(gradient))
        chex.assert_trees_all_equal_shapes(params, init(other)["params"])
    other_value, other_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, other)
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    chex.assert_trees_all_close(other_gradient, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_the_last_block_computes_what_the_head_reads_and_no_more(pooling):
    model = small("vit_ti_patch", pooling=pooling, drop_path=0.5)
    variables = init(model)

    def logits(params):
        return model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": jax.random.key(1)})

    def by_all_tokens(params):
        rngs = {"dropout": jax.random.key(1)}
        tokens = model.apply({"params": params}, IMAGES, train=True, rngs=rngs, method="tokens")
        pooled = tokens[:, 0] if pooling == "class" else tokens.values.mean(axis=1)
        return pooled @ params["head"]["kernel"] + params["head"]["bias"]

    found, work = {}, {}
    for form in (logits, by_all_tokens):

        def loss(params, form=form):
            return jnp.square(form(params)).sum()

        compiled = jax.jit(jax.value_and_grad(loss)).lower(variables["params"]).compile()
        found[form], work[form] = compiled(variables["params"]), compiled.cost_analysis()["flops"]
    chex.assert_trees_all_close(found[logits], found[by_all_tokens], rtol=1e-5, atol=1e-6)
    spared = work[logits] < 0.9 * work[by_all_tokens]
    assert spared == (pooling == "class"), f"{work[logits]:.0f} of {work[by_all_tokens]:.0f} operations"


@pytest.mark.slow
def test_pooling_mean_has_no_class_token():
    model = small(pooling="mean")
    variables = init(model)
    assert "class_token" not in variables["params"]
    assert variables["params"]["position_embedding"].shape == (1, 16, 16)
    tokens = apply(model, variables, IMAGES, method="tokens")
    expected = numpy_reference.dense(np.asarray(tokens).mean(axis=1), variables["params"]["head"])
    np.testing.assert_allclose(apply(model, variables, IMAGES), expected, atol=1e-5)


@pytest.mark.slow
def test_without_classes_it_returns_features():
    model = create_model("vit_ti_stce", num_classes=0, image_size=16, **STCE)
    variables = init(model)
    tokens = apply(model, variables, IMAGES, method="tokens")
    features = apply(model, variables, IMAGES)
    assert features.shape == (3, 16) and "head" not in variables["params"]
    np.testing.assert_allclose(features, tokens[:, 0], atol=1e-6)


@pytest.mark.slow
def test_sincos_positions_are_no_parameter_and_tell_places_apart():
    model = small("vit_ti_patch", position_embedding="sincos2d", pooling="mean")
    variables = init(model)
    assert "position_embedding" not in variables["params"]
    moved = np.roll(IMAGES, 4, axis=2)
    assert np.abs(apply(model, variables, IMAGES) - apply(model, variables, moved)).max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("position_embedding", ["learned", "sincos2d"])
@pytest.mark.parametrize("size", [(16, 16), (32, 24), (17, 9)])
def test_positions_follow_the_grid_of_other_sizes(position_embedding, size):
    model = small(position_embedding=position_embedding)
    variables = init(model)
    images = np.zeros((1, *size, 3), np.float32)
    rows, columns = model.embedding.grid(*size)
    tokens = jax.eval_shape(lambda v: model.apply(v, images, train=False, method="tokens"), variables)
    assert tokens.shape == (1, 1 + rows * columns, 16)
    assert np.isfinite(apply(model, variables, images)).all()


@pytest.mark.slow
def test_rectangular_image_size():
    model = create_model("vit_ti_stce", num_classes=5, image_size=(16, 24), **STCE)
    variables = init(model, np.zeros((1, 16, 24, 3), np.float32))
    assert variables["params"]["position_embedding"].shape == (1, 1 + 4 * 6, 16)


@pytest.mark.slow
def test_bfloat16_is_near_float32_with_float32_parameters_and_logits():
    exact, rough = small(), small(dtype="bfloat16")
    variables = init(rough)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    expected, actual = (apply(model, variables, IMAGES) for model in (exact, rough))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.slow
def test_drop_path_and_dropout_act_in_training_alone():
    for options in ({"drop_path": 0.5}, {"dropout": 0.5}):
        model = small("vit_ti_patch", depth=2, **options)
        variables = init(model)

        def logits(seed, train, model=model, variables=variables):
            rngs = {"dropout": jax.random.key(seed)}
            return model.apply(variables, IMAGES, train=train, rngs=rngs, mutable=["batch_stats"])[0]

        np.testing.assert_array_equal(logits(0, True), logits(0, True), err_msg=f"{options}: same key, other result")
        assert np.abs(logits(0, True) - logits(1, True)).max() > 0, f"{options} does nothing in training"
        np.testing.assert_array_equal(logits(0, False), logits(1, False), err_msg=f"{options} acts in evaluation")


@pytest.mark.slow
def test_intermediates_hold_affinities_and_attention_of_every_block():
    model = small()
    _, sown = apply(model, init(model), IMAGES, mutable=["intermediates"], method="tokens")
    sown = sown["intermediates"]
    assert sown["embedding"]["affinity"][0].shape == (3, 8, 8, 9)
    assert [sown[f"blocks_{i}"]["attention"]["attention"][0].shape for i in range(3)] == [(3, 2, 17, 17)] * 3
