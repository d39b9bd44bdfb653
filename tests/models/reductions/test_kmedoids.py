"""K-Medoids against the numbers of its published code, and what follows from its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import EXACT, SINGLE, SINGLE_GRADIENT, assert_close, check_blocks, check_vision_transformer, golden
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.models.ops.distances import squared_distances
from stce_jax.models.reductions import kmedoids
from stce_jax.models.reductions.kmedoids import KMedoids, attention_received, far_apart
from stce_jax.models.tokens import Tokens

CORES = (
    "kmedoids_core_n20_K4_it5_equalw",
    "kmedoids_core_n16_K8_it3",
    "kmedoids_core_n17_K1_it3",
    "kmedoids_core_n18_K6_it0",
    "kmedoids_core_n25_K5_it3",
    "kmedoids_core_n12_Kall_it3",
)
DTYPES = [np.float64, np.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in CORES[:2])) for name in CORES]
)
def test_cores_equal_the_golden_numbers(name, dtype):
    arrays = golden("reductions", name)
    clusters, iterations = int(arrays["cfg_clusters"]), int(arrays["cfg_iterations"])
    with jax.enable_x64(True):

        @jax.jit
        @partial(jax.grad, has_aux=True)
        def run(values):
            distances = jnp.sqrt(squared_distances(jax.lax.stop_gradient(values)))
            weights, first = jnp.ones(values.shape[:2], dtype), None
            if "in_weight" in arrays:
                weights = jnp.asarray(arrays["in_weight"][..., 0], dtype)
                first = jax.lax.top_k(weights, clusters)[1]
            else:
                first = far_apart(distances, jnp.asarray(arrays["in_first_center"][0]), clusters)
            medoids, assignment = kmedoids.cluster(distances, weights, first, iterations)
            outputs = jnp.take_along_axis(values, medoids[..., None], axis=1)
            return (outputs * arrays["cotangent"].astype(dtype)).sum(), (first, medoids, assignment, outputs)

        gradient, (first, medoids, assignment, outputs) = run(jnp.asarray(arrays["in_x"], dtype))
    if "info_initial_idx" in arrays:
        assert_close(first, arrays["info_initial_idx"], 0, "first medoids")
    assert_close(medoids, arrays["out_center_idx"], 0, "medoids")
    assert_close(assignment, arrays["out_cluster_idx"], 0, "clusters")
    exact = dtype == np.float64
    assert_close(outputs, arrays["out_x"], EXACT if exact else SINGLE, "tokens")
    assert_close(gradient, arrays["grad_x"], EXACT if exact else SINGLE_GRADIENT, "gradient")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_equal_the_golden_numbers(dtype):
    arrays = golden("reductions", "kmedoids_block_n17_K8")
    check_blocks(arrays, KMedoids((1,), keep_rate=0.5), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_models_equal_the_golden_numbers(dtype):
    arrays = golden("reductions", "kmedoids_model_keep05")
    left = check_vision_transformer(arrays, KMedoids((1, 2), keep_rate=0.5), dtype)
    for block in (1, 2):
        assignment = left[f"blocks_{block - 1}"]["reduction"]["assignment"][0]
        assert_close(assignment, arrays[f"out_cluster_idx_block{block}"], 0, f"clusters before block {block}")


@partial(jax.jit, static_argnums=(2, 3))
def clustered(values, weights, clusters, iterations):
    distances = jnp.sqrt(squared_distances(values))
    return kmedoids.cluster(distances, weights, jax.lax.top_k(weights, clusters)[1], iterations)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_clusters_are_those_of_their_medoids(seed):
    """Every medoid was the best member of its cluster, and every token is with the nearest medoid."""
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=(2, 11, 3)), rng.uniform(0.1, 1.0, size=(2, 11))
    with jax.enable_x64(True):
        (medoids, assignment), (_, members) = (
            map(np.asarray, clustered(values, weights, 4, iterations)) for iterations in (3, 2)
        )
    distances = np.linalg.norm(values[:, :, None] - values[:, None], axis=-1)
    costs = weights * distances.sum(axis=-1)
    for image in range(2):
        np.testing.assert_array_equal(assignment[image], distances[image][medoids[image]].argmin(axis=0))
        for rank in range(4):
            own = np.flatnonzero(members[image] == rank)  # never empty: no two tokens are alike
            assert medoids[image, rank] == own[costs[image][own].argmin()]


def test_medoids_far_apart_are_found_on_each_device():
    """JAX checks within shard_map that what a loop carries differs by device from the start."""
    mesh, split = jax.sharding.Mesh(np.array(jax.devices()), ("devices",)), jax.sharding.PartitionSpec("devices")
    for clusters in (1, 3):
        found = partial(far_apart, first=jnp.asarray(0), clusters=clusters)
        mapped = jax.shard_map(found, mesh=mesh, in_specs=split, out_specs=split)
        assert jax.eval_shape(mapped, jnp.zeros((8, 5, 5))).shape == (8, clusters)


def test_attention_received_counts_all_queries():
    weights = np.random.default_rng(0).uniform(size=(2, 3, 5, 5))
    np.testing.assert_allclose(attention_received(weights, 1), weights.sum(axis=(1, 2))[:, 1:])
    assert attention_received(weights, 0).shape == (2, 5)


def test_counts_are_those_of_deit_small():
    for rate, counts in {0.9: [176, 158, 142], 0.7: [137, 96, 67], 0.5: [98, 49, 24], 0.25: [49, 12, 3]}.items():
        assert KMedoids(keep_rate=rate).counts((14, 14), 3) == counts
    assert KMedoids(keep_rate=(0.5, 0.75, 0.25)).counts((4, 4), 3) == [8, 8, 4]  # there are no more than before


@pytest.mark.slow
def test_with_equal_weights_training_draws_from_the_runs_keys_and_evaluation_needs_none():
    """Without a class token."""
    model = create_model(
        "vit_ti_patch", num_classes=5, image_size=16, width=16, depth=2, heads=2, mlp_dim=24, patch_size=4,
        pooling="mean", reduction="kmedoids", blocks=(1,), keep_rate=0.25, equal_weight=True,
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)

    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)

    @jax.jit
    def run(key):
        trained = model.apply(variables, images, train=True, rngs={"dropout": key})
        alone = model.apply(variables, images[1:], train=False)
        tokens = model.apply(variables, images, train=False, method="tokens")
        return model.apply(variables, images, train=False), trained, alone, tokens

    logits, trained, alone, tokens = run(jax.random.key(1))
    others = [run(jax.random.key(key))[1] for key in range(2, 5)]
    assert tokens.shape[1] == 4 and tokens.sizes is None and tokens.grid is None
    np.testing.assert_allclose(alone[0], logits[1], atol=1e-6)
    assert any(np.abs(trained - other).max() > 1e-6 for other in others)


def test_wrong_options_are_one_line():
    for wrong, message in [
        ({"keep_rate": 0.0}, "keep_rate is 0.0"),
        ({"medoid_iterations": -1}, "medoid_iterations is -1; it must be a whole number"),
        ({"keep_rate": (0.5, 0.5)}, "keep_rate lists 2 rates for 3 blocks"),
    ]:
        with pytest.raises(ConfigError, match=message):
            KMedoids(**wrong).check()
    with pytest.raises(ConfigError, match="blocks is 0; it must be a whole number between 1 and 2"):
        create_model(
            "vit_ti_patch", num_classes=2, image_size=16, depth=3, patch_size=4, reduction="kmedoids", blocks=(0,)
        )
    masked = Tokens(jnp.ones((1, 4, 2)), mask=jnp.ones((1, 4), bool), initial_grid=(1, 4))
    with pytest.raises(ConfigError, match="kmedoids cannot leave out masked tokens"):
        KMedoids().apply({}, masked, {"weights": jnp.ones((1, 1, 4, 4))}, train=False)
