"""The options of plain blocks that the original ViT has not: equal to NumPy, alone and together; refused in words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_ingredients
import numpy_reference
import pytest
from body_checks import check_refused, images, noise
from flax import linen as nn

from stce_jax.analysis.costs import count_model, count_parameters
from stce_jax.analysis.drawing.introspection import class_attention
from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model, model_options
from stce_jax.models.layers import MLP, SwiGLU, gated_width
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.models.tokens import Tokens
from stce_jax.training.mesh import batch_sharding, make_mesh
from stce_jax.training.state import abstract_variables
from stce_jax.verbs.features import _of_tokens

TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch_size": 4}
ALL = {
    "position_embedding": "rope_mixed",
    "registers": 3,
    "layer_scale": 0.1,
    "norm": "rmsnorm",
    "qk_norm": True,
    "mlp": "swiglu",
}
INGREDIENTS = {
    "axial": {"position_embedding": "rope_axial"},
    "mixed": {"position_embedding": "rope_mixed"},
    "registers": {"registers": 3},
    "layer_scale": {"layer_scale": 0.1},
    "rmsnorm": {"norm": "rmsnorm"},
    "qk_norm": {"qk_norm": True},
    "swiglu": {"mlp": "swiglu"},
    "all": ALL,
}
IMAGES = images(16, 12)


def tiny(name="vit_ti_patch", **options):
    return create_model(name, num_classes=3, **{"image_size": (16, 12), **TINY, **options})


@functools.partial(jax.jit, static_argnames=("model", "method"))
def applied(model, variables, inputs, method="__call__"):
    return model.apply(variables, inputs, train=False, method=method)


def expected_logits(variables, inputs, side, rotary):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), variables["params"])
    grid = (inputs.shape[1] // side, inputs.shape[2] // side)
    tokens = numpy_reference.patch_embed(inputs.astype(float), params["embedding"], side)
    return numpy_ingredients.vision_transformer(tokens, params, 2, grid, rotary)


@pytest.mark.slow
@pytest.mark.parametrize("name", INGREDIENTS)
def test_each_equals_numpy(name):
    """The logits, which are read off a last block that computes the class token alone."""
    options = INGREDIENTS[name]
    model = tiny(**options)
    variables = noise(model)
    rotary = options.get("position_embedding", "").startswith("rope")
    expected = expected_logits(variables, IMAGES, 4, rotary)
    np.testing.assert_allclose(applied(model, variables, IMAGES), expected, rtol=1e-4, atol=1e-4)
    if rotary:  # at another size the places are those of its grid
        larger = images(20, 24)
        expected = expected_logits(variables, larger, 4, rotary)
        np.testing.assert_allclose(applied(model, variables, larger), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_all_of_them_train_alike_with_remat_and_scan(scan_layers):
    """Logits and gradients, in the last block's short form, too."""
    plain, other = tiny(**ALL), tiny(**ALL, remat=True, scan_layers=scan_layers)
    variables = noise(plain)
    params = dict(variables["params"])

    def loss(params, model):
        return (model.apply({"params": params}, IMAGES, train=True) ** 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, plain)
    if scan_layers:

        def stacked(tree):
            blocks = [tree.pop(f"blocks_{index}") for index in range(2)]
            return {**tree, "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}

        params, gradient = stacked(params), stacked(dict(gradient))
    other_value, other_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, other)
    np.testing.assert_allclose(other_value, value, rtol=1e-4)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for left, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-3, atol=1e-5 * largest)
        assert np.abs(left).max() > 0, "a parameter that nothing depends on"


@pytest.mark.slow
def test_several_devices_draw_and_compute_what_one_does():
    model = tiny(**ALL, patch_dropout=0.5)
    variables, inputs = noise(model), images(16, 12, count=8)
    run = jax.jit(lambda x: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)}))
    spread = jax.device_put(inputs, batch_sharding(make_mesh()))
    assert len(spread.sharding.device_set) > 1
    np.testing.assert_allclose(run(spread), run(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_all_of_them_in_bfloat16():
    exact, rough = tiny(**ALL), tiny(**ALL, dtype="bfloat16")
    variables = noise(exact, spread=0.2)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_variables(rough, 16))} == {jnp.dtype("float32")}
    expected, found = (applied(model, variables, IMAGES) for model in (exact, rough))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())


def test_they_stand_in_the_parameters_and_nothing_else_moves():
    def shapes(name="vit_ti_patch", **options):
        params = abstract_variables(tiny(name, image_size=16, **options), 16)["params"]
        flat = jax.tree_util.tree_flatten_with_path(params)[0]
        return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}

    plain = shapes()
    added = {
        "registers": {"registers": (1, 3, 16)},
        "layer_scale": {f"blocks_{n}/{part}_scale/scale": (16,) for n in (0, 1) for part in ("attention", "mlp")},
        "qk_norm": {
            f"blocks_{n}/attention/{part}_norm/{leaf}": (8,)
            for n in (0, 1)
            for part in ("query", "key")
            for leaf in ("scale", "bias")
        },
        "swiglu": {f"blocks_{n}/mlp/in/kernel": (16, 32) for n in (0, 1)},
        "mixed": {f"blocks_{n}/attention/frequencies": (2, 2, 4) for n in (0, 1)},
    }
    for name, own in added.items():
        found = shapes(**INGREDIENTS[name])
        assert {path: found.get(path) for path in own} == own
        if name in ("registers", "layer_scale", "qk_norm"):
            assert found == plain | own
    assert shapes(norm="rmsnorm").keys() == {path for path in plain if not path.endswith("norm/bias")} | {
        "embedding/patch_norm/bias",
        "embedding/norm/bias",
    }
    for rotary in ("rope_axial", "rope_mixed"):
        assert "position_embedding" not in shapes(position_embedding=rotary)
    assert shapes(patch_dropout=0.5) == plain
    assert shapes("deit_ti_distilled", registers=2)["position_embedding"] == (1, 2 + 16, 16)


def test_the_gated_mlp_has_the_parameters_of_a_plain_one():
    assert [gated_width(hidden) for hidden in (1, 24, 576, 1152, 1536, 3072, 100)] == [8, 16, 384, 768, 1024, 2048, 72]

    def count(module):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 2, 384)), train=False))
        return count_parameters(shapes)

    assert abs(count(SwiGLU(1152)) - count(MLP(1152))) == 2 * 768 - 1152  # biases


def test_multiply_adds_with_and_without_a_scan():
    plain, scanned, registers = (
        count_model(tiny(image_size=16, pooling=pooling, **options), 16)["multiply_adds"]
        for pooling, options in (("mean", {}), ("mean", {"scan_layers": True}), ("mean", {"registers": 4}))
    )
    assert scanned == plain < registers
    swiglu, rotary = (
        count_model(tiny(image_size=16, pooling="mean", **options), 16)["multiply_adds"]
        for options in ({"mlp": "swiglu"}, {"position_embedding": "rope_mixed"})
    )
    assert swiglu == plain == rotary


KEPT = ("topk", "evit", "dynamicvit", "pattern", "ats")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rotary"), [*((name, "rope_axial") for name in KEPT), ("topk", "rope_mixed")])
def test_places_follow_the_tokens_that_a_reduction_keeps(name, rotary):
    model = tiny(position_embedding=rotary, registers=1, reduction=name, blocks=(1,), keep_rate=0.5, depth=3)
    variables = noise(model)

    @jax.jit
    def run():
        seen = []

        def watch(method, args, kwargs, context):
            given = method(*args, **kwargs)
            if isinstance(context.module, REDUCTIONS[name]) and context.method_name == "__call__":
                seen.append((args[0], given))
            return given

        with nn.intercept_methods(watch):
            model.apply(variables, IMAGES, train=False)
        return seen[0]

    entered, left = jax.device_get(run())
    places = np.broadcast_to(entered.places, (2, 14, 2))
    np.testing.assert_array_equal(places[0, 2:], [(token % 3, token // 3) for token in range(12)])
    count, fused = left.shape[1], int(name == "evit")
    assert left.places.shape == (2, count, 2) and count < 14
    for image in range(2):
        where = {row.tobytes(): place for row, place in zip(entered[image], places[image], strict=True)}
        expected = [where[row.tobytes()] for row in left[image][: count - fused]] + [(0, 0)] * fused
        np.testing.assert_array_equal(left.places[image], expected)


@pytest.mark.parametrize("name", sorted(REDUCTIONS.keys() - set(KEPT)))
def test_reductions_that_make_new_tokens_are_refused_with_rotary_positions(name):
    options = {"position_embedding": "rope_axial", "reduction": name, "blocks": (1,)}
    check_refused("vit_ti_patch", "positions need each token's place", **TINY, **options)


@pytest.mark.slow
def test_patch_dropout_spares_the_work_and_moves_no_other_draw():
    """With all tokens alike nothing but the number of tokens changes, so drop path's draws show."""
    dropping, plain = (
        tiny(patch_dropout=rate, drop_path=0.5, position_embedding="sincos2d", pooling="mean", depth=3)
        for rate in (0.5, 0.0)
    )
    variables = noise(plain)
    variables["params"]["embedding"]["norm"]["scale"][:] = 0.0  # each token is the norm's bias

    def flops(model):
        run = jax.jit(lambda v: model.apply(v, IMAGES, train=True, rngs={"dropout": jax.random.key(1)}))
        compiled = run.lower(variables).compile()
        return compiled(variables), compiled.cost_analysis()["flops"]

    (_, few), (_, all_of_them) = flops(dropping), flops(plain)
    assert few < 0.7 * all_of_them
    alike = {model: model.clone(position_embedding="rope_axial") for model in (dropping, plain)}
    keys = {"dropout": jax.random.key(1)}
    found, expected = (model.apply(variables, IMAGES, train=True, rngs=keys) for model in alike.values())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_registers_are_read_by_no_head_and_drawn_by_no_picture():
    model = tiny("deit_ti_distilled", registers=2, image_size=16, drop_path=0.0)
    variables, inputs = noise(model), images(16, 16)
    tokens = applied(model, variables, inputs, "tokens")
    assert (tokens.leading, tokens.registers, tokens.grid, tokens.places) == (4, 2, (4, 4), None)
    features = applied(model, variables, inputs, "features")
    np.testing.assert_allclose(features, tokens[:, :2].mean(axis=1), atol=1e-5)
    assert jax.eval_shape(lambda: class_attention(model, variables, inputs)).shape == (2, 2, 4, 4)
    mean = tiny(registers=2, pooling="mean", image_size=16)
    variables = noise(mean)
    tokens = applied(mean, variables, inputs, "tokens")
    np.testing.assert_allclose(applied(mean, variables, inputs, "features"), tokens[:, 2:].mean(axis=1), atol=1e-5)
    with pytest.raises(ConfigError, match="no class token"):
        class_attention(mean, variables, inputs)


def test_a_register_alone_is_no_class_token_of_stce_features():
    tokens = Tokens(np.zeros((2, 5, 3), np.float32), leading=1, registers=1)
    assert _of_tokens(tokens).keys() == {"features", "leading_tokens"}
    assert _of_tokens(tokens.replace(registers=0)).keys() == {"features", "class_token"}
    both = Tokens(np.zeros((2, 5, 3), np.float32), leading=3, registers=2)
    assert [both.first(count).registers for count in (1, 2, 3)] == [0, 1, 2]


def test_options_of_one_body_are_no_others():
    """The usual line, which names the options that there are."""
    for name in ("swin_t", "cvt_13", "mobilevit_s", "svit_s", "cmt_s", "focal_t", "dat_t"):
        check_refused(name, f"{name} has no option 'registers'; its options are", registers=4)
    assert model_options("deit_s", **ALL)["norm"] == "rmsnorm"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_embedding": "rope"}, "must be one of learned, sincos2d, rope_axial, rope_mixed"),
        ({"position_embedding": "rope_axial", "width": 12}, "heads of width 6 are no multiple of 4, which rope_axial"),
        ({"registers": -1}, "registers is -1; it must be a whole number between 0 and 1024"),
        ({"registers": 1.5}, "registers is 1.5; it must be of type int"),
        ({"layer_scale": 2.0}, "layer_scale is 2.0; it must be between 0 and 1"),
        ({"norm": "batch"}, "norm is 'batch'; it must be one of layernorm, rmsnorm"),
        ({"mlp": "relu"}, "mlp is 'relu'; it must be one of gelu, swiglu"),
        ({"qk_norm": 1}, "qk_norm is 1; it must be of type bool"),
        ({"patch_dropout": 1.0}, "patch_dropout is 1.0"),
        ({"patch_dropout": 0.5, "reduction": "topk", "blocks": (1,)}, "both take tokens away in training"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("vit_ti_patch", message, **{**TINY, **options})
