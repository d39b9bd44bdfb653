"""Clustering between two resolutions against the golden numbers of HCFormer's published code, and its averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden, last, linear, norm, weights_of
from golden_svit import check

from stce_jax.errors import ConfigError
from stce_jax.models.attentions.clustering import ClusteringAttention
from stce_jax.models.embeddings.hcformer import HCFormerEmbed
from stce_jax.models.ops.clustering import cluster_locally, cluster_means


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def params_of(weights):
    embeddings = {f"{name}_embedding": linear(weights, f"{name}_emb") for name in ("fine", "coarse")}
    norms = {f"{name}_norm": norm(weights, f"{name}_norm") for name in ("fine", "coarse")}
    return {"params": {**embeddings, **norms, "temperature": weights["temp"].reshape(())}}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("hcformer_cluster_6x10", np.float64),
        pytest.param("hcformer_cluster_6x10", np.float32, marks=pytest.mark.slow),
        pytest.param("hcformer_cluster_8x8", np.float64, marks=pytest.mark.slow),
        pytest.param("hcformer_cluster_8x8", np.float32, marks=pytest.mark.slow),
    ],
)
def test_equals_the_golden_numbers_with_its_gradients(name, dtype):
    arrays = golden("reductions", name)
    weights = weights_of(arrays)
    module = ClusteringAttention(len(weights["fine_emb.weight"]), dtype=dtype)

    def upsample(variables, fine, coarse, signal):
        return module.apply(variables, fine, coarse).scatter(signal)

    maps = ("fine", "coarse", "coarse_signal")
    gradients = {"params": {"temperature": arrays["grad_temp"].reshape(())}}
    expected = gradients, tuple(last(arrays[f"grad_{name}"]) for name in maps)
    inputs, cotangent = tuple(last(arrays[f"in_{name}"]) for name in maps), last(arrays["cotangent"])
    variables = params_of(weights)
    check(upsample, variables, inputs, cotangent, last(arrays["out_upsampled"]), expected, dtype)

    def assign(variables, fine, coarse, _):
        return module.apply(variables, fine, coarse).affinity()

    assignment = last(arrays["out_assignment"])
    check(assign, variables, inputs, 0 * assignment, assignment, ({}, ()), dtype)


@pytest.mark.parametrize("size", [(6, 8), pytest.param((5, 7), marks=pytest.mark.slow)])
def test_averages_are_of_real_pixels_with_weights_that_sum_to_one(size):
    """Of ones they are one, at odd sizes, too; of the assignment's matrix they are its normalised columns."""
    fine, coarse = draw(2, *size, 4), draw(2, 3, 4, 4, seed=1)
    values = jnp.concatenate([draw(2, *size, 3, seed=2), jnp.ones((2, *size, 1))], axis=-1)

    @jax.jit
    def both(fine, coarse, values):
        assignment = cluster_locally(fine, coarse, jnp.float32(0.5))
        places = jnp.eye(12).reshape(1, 3, 4, 12).repeat(2, axis=0)
        return cluster_means(assignment, values), assignment.scatter(places)  # [B, H, W, 12]: the dense assignment

    means, dense = both(fine, coarse, values)
    np.testing.assert_allclose(dense.sum(axis=-1), 1, atol=1e-5)
    expected = jnp.einsum("bhwk,bhwc->bkc", dense, values) / dense.sum(axis=(1, 2))[..., None]
    np.testing.assert_allclose(means.reshape(2, 12, 4), expected, atol=1e-5)
    np.testing.assert_allclose(means[..., 3], 1, atol=1e-5)


def test_a_map_of_zeros_has_finite_gradients():
    def loss(fine, temperature):
        return (cluster_locally(fine, jnp.ones((1, 2, 2, 4)), temperature).affinities ** 2).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros((1, 4, 4, 4)), jnp.float32(0.1))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.slow
def test_as_an_embedding_it_halves_the_stack_once_more():
    """Gradients reach the coarse map, and with it every parameter."""
    embedding = HCFormerEmbed(12, (4, 6), (2, 1), assignment_width=5)
    images = draw(2, 14, 18, 3)
    variables = jax.jit(embedding.init)(jax.random.key(0), images)

    @jax.jit
    def run(params, images):
        def loss(params):
            tokens, new = embedding.apply({**variables, "params": params}, images, train=True, mutable=True)
            return jnp.square(tokens.values).sum(), (tokens, new)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (tokens, new) = run(variables["params"], images)
    assert tokens.grid == embedding.grid(14, 18) == (4, 5) and tokens.shape == (2, 20, 12)
    assert new["intermediates"]["cluster_affinity"][0].shape == (2, 8, 10, 9)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_as_an_embedding_it_rounds_up_and_refuses_no_width():
    assert HCFormerEmbed().grid(225, 224) == (15, 14) and HCFormerEmbed().feature_places() == (16, 0.0)
    with pytest.raises(ConfigError, match="assignment_width is 0; it must be a whole number between 1"):
        HCFormerEmbed(assignment_width=0).check()
