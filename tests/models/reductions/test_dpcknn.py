"""DPC-KNN against the numbers of its published code, and what follows from its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import (
    EXACT,
    SINGLE,
    SINGLE_GRADIENT,
    assert_close,
    check_blocks,
    check_vision_transformer,
    golden,
    linear,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.models.reductions import dpcknn
from stce_jax.models.reductions.dpcknn import DPCKNN
from stce_jax.models.tokens import Tokens

CORES = (
    "dpcknn_core_n16_K8_k5",
    "dpcknn_core_n25_K6_k5_equalw",
    "dpcknn_core_n12_Kall_k3",
    "dpcknn_core_n17_K1_k5",
    "dpcknn_core_n20_K5_nonoise",
    "dpcknn_core_n15_K7_k1",
)
DOUBLE_ALONE = "dpcknn_core_n15_K7_k1"  # of one neighbour: densities differ by less than float32 can tell
QUICK = ("dpcknn_core_n16_K8_k5",)  # the others in the slow tier
DTYPES = [np.float64, np.float32]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in CORES
        for dtype in DTYPES
        if (name, dtype) != (DOUBLE_ALONE, np.float32)
    ],
)
def test_cores_equal_the_golden_numbers(name, dtype):
    arrays = golden("reductions", name)
    clusters = int(arrays["cfg_clusters"])
    with jax.enable_x64(True):
        values, noise = (jnp.asarray(arrays[f"in_{part}"], dtype) for part in ("x", "noise"))
        weights = jnp.asarray(arrays["in_weight"][..., 0], dtype) if "in_weight" in arrays else jnp.ones_like(noise)

        @jax.jit
        @partial(jax.grad, argnums=(0, 1), has_aux=True)
        def run(values, weights):
            centres, assignment = dpcknn.cluster(values, noise, clusters, int(arrays["cfg_k"]))
            outputs = dpcknn.merge(Tokens(values), weights, assignment, clusters).values
            return (outputs * arrays["cotangent"].astype(dtype)).sum(), (centres, assignment, outputs)

        gradients, (centres, assignment, outputs) = run(values, weights)
    assert_close(centres, arrays["out_center_idx"], 0, "centres")
    assert_close(assignment, arrays["out_cluster_idx"], 0, "clusters")
    exact = dtype == np.float64
    assert_close(outputs, arrays["out_x"], EXACT if exact else SINGLE, "tokens")
    assert_close(gradients[0], arrays["grad_x"], EXACT if exact else SINGLE_GRADIENT, "gradient")
    if "grad_weight" in arrays:
        expected = arrays["grad_weight"][..., 0]
        assert_close(gradients[1], expected, EXACT if exact else SINGLE_GRADIENT, "gradient of the weights")


def hand_over(monkeypatch, *noises):
    """The golden files' noise in place of the one that evaluation takes; the number of tokens tells which."""
    by_count = {noise.shape[1]: noise for noise in noises}
    monkeypatch.setattr(dpcknn, "drawn_noise", lambda key, shape, dtype: jnp.asarray(by_count[shape[1]], dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_equal_the_golden_numbers(monkeypatch, dtype):
    arrays = golden("reductions", "dpcknn_block_n17_K8")
    hand_over(monkeypatch, arrays["in_noise"])
    module = DPCKNN((1,), keep_rate=0.5)
    check_blocks(arrays, module, dtype, lambda weights: {"score": linear(weights, "ctm.score")})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_models_equal_the_golden_numbers(monkeypatch, dtype):
    arrays = golden("reductions", "dpcknn_model_keep05")
    hand_over(monkeypatch, arrays["in_noise_stage0"], arrays["in_noise_stage1"])
    left = check_vision_transformer(
        arrays,
        DPCKNN((1, 2), keep_rate=0.5),
        dtype,
        lambda weights, stage: {"score": linear(weights, f"cluster_layers.{stage}.score")},
    )
    for block in (1, 2):
        assignment = left[f"blocks_{block - 1}"]["reduction"]["assignment"][0]
        assert_close(assignment, arrays[f"out_cluster_idx_block{block}"], 0, f"clusters before block {block}")


clustered = jax.jit(dpcknn.cluster, static_argnums=(2, 3))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), copies=st.booleans())
def test_every_cluster_has_its_centre_and_what_is_nearest_to_it(seed, copies):
    """Also where tokens are alike, whose distances are equal."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 12, 3)).astype(np.float32)
    if copies:
        values[:, 6:] = values[:, :6]
    noise = rng.uniform(size=(2, 12)).astype(np.float32)
    centres, assignment = map(np.asarray, clustered(values, noise, 5, 3))
    distances = np.linalg.norm(values[:, :, None] - values[:, None], axis=-1)
    for image in range(2):
        assert len(set(centres[image])) == 5
        np.testing.assert_array_equal(assignment[image][centres[image]], np.arange(5))
        nearest = distances[image][:, centres[image]]
        own = nearest[np.arange(12), assignment[image]]
        np.testing.assert_allclose(own, nearest.min(axis=1), atol=1e-6)


def test_a_cluster_is_the_mean_of_its_members():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(2, 7, 3)).astype(np.float32), rng.uniform(1, 2, size=(2, 6)).astype(np.float32)
    assignment = np.asarray([[0, 1, 0, 2, 1, 1], [2, 2, 0, 1, 0, 0]])
    sizes = rng.integers(1, 4, size=(2, 7)).astype(np.float32)
    merged = dpcknn.merge(Tokens(jnp.asarray(values), jnp.asarray(sizes), leading=1), weights, assignment, 3)
    np.testing.assert_array_equal(merged.values[:, 0], values[:, 0])
    for image in range(2):
        for rank in range(3):
            own = 1 + np.flatnonzero(assignment[image] == rank)
            mean = np.average(values[image][own], axis=0, weights=weights[image][own - 1])
            np.testing.assert_allclose(merged.values[image, 1 + rank], mean, atol=1e-5)
            assert merged.sizes[image, 1 + rank] == sizes[image][own].sum()


def model_of(**options):
    small = {"image_size": 16, "width": 16, "depth": 3, "heads": 2, "mlp_dim": 24, "patch_size": 4, "num_classes": 5}
    return create_model("vit_ti_patch", **small | {"reduction": "dpcknn", "blocks": (1, 2), "keep_rate": 0.5} | options)


@pytest.mark.slow
def test_every_stage_has_its_own_layer():
    def count(**options):
        model = model_of(**options)
        variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        return sum(leaf.size for leaf in jax.tree.leaves(variables)), variables["params"]

    plain, _ = count(equal_weight=True)
    total, params = count()
    assert total - plain == 2 * (16 + 1)
    assert params["blocks_0"]["reduction"]["score"]["kernel"].shape == (16, 1) and "reduction" not in params["blocks_2"]
    all_kept, params = count(keep_rate=1.0)
    assert all_kept == total  # nothing to merge, yet the variables are the same


def test_deit_small_has_385_parameters_a_stage_and_its_counts():
    for rate, counts in {0.9: [176, 158, 142], 0.7: [137, 96, 67], 0.5: [98, 49, 24], 0.25: [49, 12, 3]}.items():
        assert DPCKNN(keep_rate=rate).counts((14, 14), 3) == counts
    tokens = Tokens(jax.ShapeDtypeStruct((1, 197, 384), jnp.float32), leading=1, initial_grid=(1, 196))
    variables = jax.eval_shape(partial(DPCKNN().init, train=False), jax.random.key(0), tokens, {})
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 385


@pytest.mark.slow
def test_training_and_evaluation_give_clusters_and_gradients():
    """Without a class token."""
    model = model_of(pooling="mean", depth=2, blocks=(1,), keep_rate=0.25)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)

    @jax.jit
    def run(variables):
        def loss(variables):
            logits = model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
            return logits.sum(), logits

        gradient, trained = jax.grad(loss, has_aux=True)(variables)
        return model.apply(variables, images, train=False, method="tokens"), trained, gradient

    tokens, trained, gradient = run(variables)
    assert tokens.shape[1] == 4 and tokens.sizes is None and tokens.grid is None
    assert np.isfinite(tokens.values).all() and np.isfinite(trained).all()
    assert np.abs(gradient["params"]["blocks_0"]["reduction"]["score"]["kernel"]).max() > 0


@pytest.mark.parametrize("reduction", ["tome", "kmedoids", "dpcknn"])
def test_tokens_keep_their_dtype(reduction):
    model = model_of(reduction=reduction, keep_rate=0.5, dtype="bfloat16", blocks=(1,), depth=2)

    def run(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return model.apply(variables, images, train=False, method="tokens")

    tokens = jax.eval_shape(run, jnp.zeros((1, 16, 16, 3)))
    assert tokens.dtype == jnp.bfloat16 and tokens.values.shape == (1, 9, 16)


def test_noise_is_drawn_by_image_in_training_and_alike_in_evaluation():
    fixed, drawn = (
        dpcknn.drawn_noise(None, (3, 5), jnp.float32),
        dpcknn.drawn_noise(jax.random.key(1), (3, 5), jnp.float32),
    )
    assert fixed.shape == (1, 5) and drawn.shape == (3, 5) and len(np.unique(drawn)) == 15
    np.testing.assert_array_equal(fixed, dpcknn.drawn_noise(None, (2, 5), jnp.float32))


def test_wrong_options_are_one_line():
    for wrong, message in [
        ({"keep_rate": 0.0}, "keep_rate is 0.0"),
        ({"neighbours": 0}, "neighbours is 0; it must be a whole number"),
        ({"keep_rate": (0.5, 0.5)}, "keep_rate lists 2 rates for 3 blocks"),
    ]:
        with pytest.raises(ConfigError, match=message):
            DPCKNN(**wrong).check()
    masked = Tokens(jnp.ones((1, 4, 2)), mask=jnp.ones((1, 4), bool), initial_grid=(1, 4))
    with pytest.raises(ConfigError, match="dpcknn cannot leave out masked tokens"):
        DPCKNN().init(jax.random.key(0), masked, {}, train=False)
