"""DynamicViT against the numbers of published code, and that training and inference mean the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import EXACT, SINGLE, SINGLE_GRADIENT, assert_close, golden, linear, norm, weights_of

from stce_jax.errors import ConfigError
from stce_jax.models.bodies.vit import Block
from stce_jax.models.factory import create_model
from stce_jax.models.layers import Attention
from stce_jax.models.reductions.dynamicvit import DynamicViT, Predictor, draw_decisions
from stce_jax.models.reductions.topk import most_attended
from stce_jax.models.tokens import Tokens
from stce_jax.training.state import abstract_variables

SINGLE_SOFTMAX = 1e-5  # the published attention's softmax is computed in float32
DTYPES = [np.float64, np.float32]


def predictor_params(weights):
    names = {"in": "in_conv.1", "hidden_1": "out_conv.0", "hidden_2": "out_conv.2", "out": "out_conv.4"}
    layers = {name: linear(weights, f"predictor.{theirs}") for name, theirs in names.items()}
    return {"norm": norm(weights, "predictor.in_conv.0"), **layers}


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_the_kept_equal_the_golden_numbers(dtype):
    arrays = golden("reductions", "dynamicvit_core_n16_K8")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = jax.tree.map(lambda array: np.asarray(array, dtype), predictor_params(weights_of(arrays)))
        values, live = (jnp.asarray(arrays[name], dtype) for name in ("in_x", "in_policy"))
        scores = jax.jit(Predictor().apply)({"params": params}, values, live[..., 0])
        module, tokens = DynamicViT(keep_rate=0.5), Tokens(values, initial_grid=(1, 16))
        reduced, left = jax.jit(
            lambda tokens: module.apply({"params": {"predictor": params}}, tokens, {}, train=False, mutable=True)
        )(tokens)
    assert_close(scores, arrays["out_logprob"], EXACT if dtype == np.float64 else SINGLE, "scores")
    assert scores.dtype == dtype
    count = int(arrays["cfg_keep"])
    assert_close(most_attended(scores[..., 0], count), arrays["out_keep_idx"], 0, "places of those kept")
    (assignment,) = left["intermediates"]["assignment"]
    assert reduced.shape == (2, count, 24) and (np.asarray(assignment) >= 0).sum() == 2 * count


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_by_policy_equals_the_golden_numbers(dtype):
    arrays = golden("reductions", "dynamicvit_core_n16_K8")
    weights = weights_of(arrays)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = {"qkv": linear(weights, "attn.qkv"), "out": linear(weights, "attn.proj")}
        params = jax.tree.map(lambda array: np.asarray(array, dtype), params)
        attention = Attention(int(arrays["cfg_heads"]), dtype=dtype)
        policy = jnp.asarray(arrays["in_attn_policy"][..., 0], dtype)

        def run(values):
            outputs, _ = attention.apply({"params": params}, Tokens(values, policy=policy), train=False)
            return (outputs * arrays["cotangent"].astype(dtype)).sum(), outputs

        gradient, outputs = jax.jit(jax.grad(run, has_aux=True))(jnp.asarray(arrays["in_attn_x"], dtype))
    exact = dtype == np.float64
    assert outputs.dtype == dtype
    assert_close(outputs, arrays["out_attn_x"], SINGLE_SOFTMAX if exact else SINGLE, "outputs")
    assert_close(gradient, arrays["grad_attn_x"], SINGLE_SOFTMAX if exact else SINGLE_GRADIENT, "gradient")


def test_parameters_and_counts_of_deit_small():
    tokens = Tokens(jax.ShapeDtypeStruct((1, 197, 384), jnp.float32), leading=1, initial_grid=(1, 196))
    shapes = jax.eval_shape(lambda tokens: DynamicViT().init(jax.random.key(0), tokens, {}, train=True), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 241_250
    assert DynamicViT(keep_rate=0.5).counts((14, 14), 3) == [98, 49, 24]


@pytest.mark.slow
def test_decisions_are_drawn_by_their_probabilities_with_the_soft_gradient():
    probabilities = jnp.linspace(0.1, 0.9, 5)
    scores = jnp.log(jnp.stack([probabilities, 1 - probabilities], axis=-1))
    many = jnp.broadcast_to(scores, (4000, 5, 2))
    decisions = np.asarray(draw_decisions(jax.random.key(0), many))
    assert set(np.unique(decisions)) == {0.0, 1.0}
    np.testing.assert_allclose(decisions.mean(axis=0), probabilities, atol=0.04)
    gradient = jax.grad(lambda scores: draw_decisions(jax.random.key(0), scores)[0, 1])(many[:1])
    soft = jax.nn.softmax(many[:1] + jax.random.gumbel(jax.random.key(0), (1, 5, 2)))[0, 1]
    expected = np.zeros((1, 5, 2))
    expected[0, 1] = [soft[0] * soft[1], -soft[0] * soft[1]]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.slow
def test_each_stage_of_training_sees_the_decisions_before_it():
    """No token leaves; those dropped stay so; every stage leaves its share of the loss."""
    values = jnp.asarray(np.random.default_rng(0).normal(size=(3, 33, 16)), jnp.float32)
    stages = [DynamicViT((1, 2), keep_rate=0.7, stage=stage) for stage in (0, 1)]
    tokens = Tokens(values, leading=1, initial_grid=(1, 32))
    variables = jax.jit(lambda: stages[0].init(jax.random.key(0), tokens, {}, train=False))()

    @jax.jit
    def run(variables, key):
        left, now, policies = [], tokens, []
        for stage, own in zip(stages, jax.random.split(key), strict=True):
            now, sown = stage.apply(variables, now, {}, train=True, rngs={"dropout": own}, mutable=["losses"])
            left.append(sown["losses"]["ratio"])
            policies.append(now.policy)
        return sum(left), (left, policies)

    (_, (left, policies)), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(variables, jax.random.key(1))
    first, second = map(np.asarray, policies)
    assert first.shape == (3, 33) and set(np.unique(first)) == {0.0, 1.0} and (first[:, 0] == 1).all()
    assert (second <= first).all() and second.sum() < first.sum() and (second[:, 0] == 1).all()
    for policy, share, loss in zip((first, second), (0.7, 0.49), left, strict=True):
        np.testing.assert_allclose(loss, 2 / 2 * ((policy[:, 1:].mean(axis=1) - share) ** 2).mean(), rtol=1e-5)
    assert all(np.abs(part).max() > 0 for part in jax.tree.leaves(gradient)), "a parameter does not learn"


@pytest.mark.slow
def test_dropped_in_training_is_what_left_at_inference():
    rng = np.random.default_rng(1)
    block = Block(heads=2, mlp_dim=12)
    values = jnp.asarray(rng.normal(size=(1, 9, 8)), jnp.float32)
    kept = np.array([0, 2, 3, 5, 8])
    policy = jnp.zeros((1, 9)).at[:, kept].set(1.0)
    variables = jax.jit(lambda: block.init(jax.random.key(0), Tokens(values, leading=1), None, None, False))()

    @jax.jit
    def run(values):
        tokens = Tokens(values, leading=1, policy=policy)
        return (
            block.apply(variables, tokens, None, None, True),
            block.apply(variables, tokens.first(1), tokens, None, True),
            block.apply(variables, Tokens(values, leading=1).select(kept), None, None, True),
        )

    live, alone, left = run(values)
    np.testing.assert_allclose(live.values[:, kept], left.values, atol=1e-5)
    np.testing.assert_allclose(alone.values, left.values[:, :1], atol=1e-5)
    np.testing.assert_allclose(live.pooled_mean(), left.pooled_mean(), atol=1e-5)


@pytest.mark.slow
def test_a_model_trains_and_answers():
    """Two stages, in bfloat16, behind remat; the mean of the tokens in training is that of the live ones."""
    options = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 16, "patch_size": 4, "num_classes": 3, "image_size": 16}
    options |= {"reduction": "dynamicvit", "blocks": (1, 2), "keep_rate": 0.5, "dtype": "bfloat16", "remat": True}
    model = create_model("vit_ti_patch", **options)
    rng = np.random.default_rng(2)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, leaf.dtype)  # noqa: E731
    variables = jax.tree.map(draw, abstract_variables(model, 16))
    images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)

    def loss(variables, key, model=model):
        logits, left = model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["losses"])
        ratios = jax.tree.leaves(left["losses"])
        assert len(ratios) == 2 and logits.shape == (2, 3)
        return jnp.square(logits).sum() + sum(ratios)

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables, jax.random.key(0))
    parts = jax.tree.leaves(gradient)
    assert np.isfinite(value) and all(np.isfinite(part).all() for part in parts)
    for index in (0, 1):
        predictor = gradient["params"][f"blocks_{index}"]["reduction"]["predictor"]
        assert all(np.abs(part).max() > 0 for part in jax.tree.leaves(predictor)), index
    assert model.token_counts(16, 16) == [16, 8, 4]
    averaging = create_model("vit_ti_patch", **options, pooling="mean")
    for each, leading in ((model, 1), (averaging, 0)):
        own = abstract_variables(each, 16)
        jax.eval_shape(lambda own, each=each: loss(own, jax.random.key(0), each), own)
        tokens = jax.eval_shape(lambda own, each=each: each.apply(own, images, train=False, method="tokens"), own)
        assert tokens.shape == (2, 4 + leading, 16) and tokens.policy is None


@pytest.mark.slow
def test_masked_tokens_are_not_kept_before_real_ones():
    values = jnp.asarray(np.random.default_rng(3).normal(size=(2, 8, 8)), jnp.float32)
    mask = jnp.asarray([[True] * 4 + [False] * 4, [False] * 4 + [True] * 4])
    module = DynamicViT(keep_rate=0.5)
    tokens = Tokens(values, initial_grid=(1, 8), mask=mask)
    reduced = jax.jit(lambda: module.init_with_output(jax.random.key(0), tokens, {}, train=False)[0])()
    assert reduced.mask.all() and reduced.shape == (2, 4, 8)


def test_wrong_options_are_one_line():
    for wrong, message in [
        ({"keep_rate": 0.0}, "keep_rate is 0.0"),
        ({"ratio_weight": -1.0}, "ratio_weight is -1.0"),
        ({"blocks": None}, "name them in blocks"),
    ]:
        with pytest.raises(ConfigError, match=message):
            DynamicViT(**wrong).check()
