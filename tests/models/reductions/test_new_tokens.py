"""SiT, PatchMerger and Sinkhorn against the numbers of published code, and what follows from their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import EXACT, SINGLE, SINGLE_GRADIENT, assert_close, golden, linear, norm, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.models.reductions.patchmerger import PatchMerger
from stce_jax.models.reductions.sinkhorn import Sinkhorn, transport_plan
from stce_jax.models.reductions.sit import SiT
from stce_jax.models.tokens import Tokens
from stce_jax.training.state import abstract_variables

METHODS = {"sit": SiT, "patchmerger": PatchMerger, "sinkhorn": Sinkhorn}
SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch_size": 4}


def params_of(name, weights):
    if name == "sit":
        layers = {"norm": norm(weights, "weight.0"), "hidden": linear(weights, "weight.1")}
        return layers | {"logits": linear(weights, "weight.3"), "scale": weights["scale"].reshape(1)}
    if name == "patchmerger":
        return {"queries": weights["queries"], "norm": norm(weights, "norm")}
    return {"centres": weights["v"]}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", METHODS)
def test_cores_equal_the_golden_numbers(name, dtype):
    arrays, module = golden("reductions", f"{name}_core_n16_K8"), METHODS[name](keep_rate=0.5)
    exact = dtype == np.float64
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = jax.tree.map(lambda array: np.asarray(array, dtype), params_of(name, weights_of(arrays)))

        def run(values):
            tokens = Tokens(values, initial_grid=(1, 16), grid=(4, 4))
            made, left = module.apply({"params": params}, tokens, {}, train=False, mutable=["intermediates"])
            return (made.values * arrays["cotangent"].astype(dtype)).sum(), (made, left["intermediates"]["assignment"])

        gradient, (made, (assignment,)) = jax.jit(jax.grad(run, has_aux=True))(jnp.asarray(arrays["in_x"], dtype))
    assert_close(made.values, arrays["out_x"], EXACT if exact else SINGLE, "tokens")
    assert_close(gradient, arrays["grad_x"], EXACT if exact else SINGLE_GRADIENT, "gradient")
    assert_close(assignment, arrays["out_weights"].argmax(axis=1), 0, "the token that takes most of each")
    assert made.values.dtype == gradient.dtype == dtype and made.grid is None


def test_parameters_of_deit_small():
    """K tokens of width C."""
    width = 384
    formulas = {
        "sit": lambda made: 2 * width + width**2 // 2 + width // 2 + made * (width // 2 + 1) + 1,
        "patchmerger": lambda made: made * width + 2 * width,
        "sinkhorn": lambda made: made * width,
    }
    tokens = Tokens(jax.ShapeDtypeStruct((1, 197, width), jnp.float32), leading=1, initial_grid=(1, 196))
    for name, method in METHODS.items():
        for stage, made in enumerate((98, 49, 24)):
            module = method(keep_rate=0.5, stage=stage)

            def init(tokens, module=module):
                return module.init(jax.random.key(0), tokens, {}, train=False)

            count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, tokens)))
            assert count == formulas[name](made), f"{name}, stage {stage}"
        assert method(keep_rate=0.5).counts((14, 14), 3) == [98, 49, 24]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooling"), [("sit", "class"), ("patchmerger", "mean"), ("sinkhorn", "mean")])
def test_larger_images_make_as_many_tokens(name, pooling):
    """The parameters say how many, also behind remat; by an option they are of another image size than the model's."""
    options = {"reduction": name, "blocks": (1,), "keep_rate": 0.5, "num_classes": 3, "pooling": pooling, **SMALL}
    model = create_model("vit_ti_patch", image_size=16, remat=True, **options)
    other = create_model("vit_ti_patch", image_size=32, initial_tokens=16, **options)
    own, theirs = (abstract_variables(each, side) for each, side in ((model, 16), (other, 32)))
    own, theirs = (tree["params"]["blocks_0"] for tree in (own, theirs))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, theirs)
    assert other.token_counts(32, 32) == [64, 8] and model.token_counts(16, 16) == [16, 8]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    variables = jax.tree.map(draw, abstract_variables(model, 16))
    tokens = jax.eval_shape(lambda: model.apply(variables, images, train=False, method="tokens"))
    assert tokens.shape == (2, 8 + tokens.leading, 16)
    gradient = jax.jit(jax.grad(lambda own: model.apply(own, images, train=False)[:, 0].sum()))(variables)
    parts = jax.tree.leaves(gradient["params"]["blocks_0"]["reduction"])
    assert all(np.isfinite(part).all() for part in parts) and any(np.abs(part).max() > 0 for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit", "patchmerger"])
def test_what_is_masked_counts_nothing_and_larger_tokens_count_more(name):
    rng = np.random.default_rng(1)
    values = jnp.asarray(rng.normal(size=(2, 7, 8)), jnp.float32)
    module = METHODS[name](keep_rate=0.5)
    variables = jax.jit(lambda: module.init(jax.random.key(0), Tokens(values, initial_grid=(1, 6)), {}, train=False))()

    @jax.jit
    def run(tokens):
        made, left = module.apply(variables, tokens, {}, train=False, mutable=["intermediates"])
        return made, left["intermediates"]["assignment"][0]

    mask = jnp.broadcast_to(jnp.arange(7) < 5, (2, 7))
    hidden, places = run(Tokens(values, mask=mask, initial_grid=(1, 6)))
    short, _ = run(Tokens(values[:, :5], initial_grid=(1, 6)))
    np.testing.assert_allclose(hidden.values, short.values, atol=1e-6)
    assert (places[:, 5:] == -1).all() and (places[:, :5] >= 0).all() and hidden.mask is None
    twice, _ = run(Tokens(values, sizes=jnp.ones((2, 7)).at[:, 2].set(2.0), initial_grid=(1, 6)))
    doubled, _ = run(Tokens(jnp.concatenate([values, values[:, 2:3]], axis=1), initial_grid=(1, 6)))
    np.testing.assert_allclose(twice.values, doubled.values, atol=1e-6)
    assert twice.sizes is None


@settings(max_examples=10)
@given(st.permutations(range(5)), st.integers(0, 2**32 - 1))
def test_a_plan_brings_its_columns_to_their_sums(order, seed):
    scores = np.random.default_rng(seed).normal(size=(2, 3, 5)).astype(np.float32)
    find = jax.jit(transport_plan, static_argnums=1)
    plan = np.asarray(find(scores, 3))
    np.testing.assert_allclose(plan.sum(axis=1), 1 / (3 + 5), rtol=1e-5)
    assert (plan > 0).all()
    np.testing.assert_allclose(find(scores[:, :, order], 3), plan[:, :, order], rtol=1e-5)


def test_centres_learn_by_their_directions_and_begin_with_length_1():
    module = Sinkhorn(keep_rate=0.5)
    tokens = Tokens(jnp.asarray(np.random.default_rng(2).normal(size=(1, 6, 4)), jnp.float32), initial_grid=(1, 6))
    params = jax.jit(lambda: module.init(jax.random.key(0), tokens, {}, train=False))()["params"]
    np.testing.assert_allclose(np.linalg.norm(params["centres"], axis=1), 1.0, rtol=1e-5)
    longer = {"centres": 3.0 * params["centres"]}
    run = jax.jit(
        jax.value_and_grad(lambda own: module.apply({"params": own}, tokens, {}, train=False).values[..., 0].sum())
    )
    made, gradients = zip(run(params), run(longer), strict=True)
    np.testing.assert_allclose(made[0], made[1], rtol=1e-5)
    np.testing.assert_allclose(gradients[0]["centres"], gradients[1]["centres"], atol=1e-5)


def test_wrong_use_is_one_line():
    for method, wrong, message in [
        (SiT, {"keep_rate": 0.0}, "keep_rate is 0.0"),
        (PatchMerger, {"initial_tokens": 0}, "initial_tokens is 0; it must be a whole number"),
        (Sinkhorn, {"rounds": 0}, "rounds is 0"),
        (Sinkhorn, {"epsilon": 0.0}, "epsilon is 0.0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            method(**wrong).check()
    with pytest.raises(ConfigError, match="leaves none of 4 tokens at stage 2 of 3"):
        SiT(keep_rate=0.4).counts((2, 2), 3)
    with pytest.raises(ConfigError, match="takes no masked ones"):
        tokens = Tokens(jnp.ones((1, 4, 4)), mask=jnp.ones((1, 4), bool), initial_grid=(1, 4))
        Sinkhorn().init(jax.random.key(0), tokens, {}, train=False)
    with pytest.raises(ConfigError, match="blocks is 0; it must be a whole number between 1 and 1"):
        create_model("vit_ti_patch", num_classes=3, image_size=16, reduction="sit", blocks=(0,), **SMALL)
