"""The clustering against the golden vectors of SViT's published code, a naive NumPy form, and its own properties."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.analysis.costs import count_multiply_adds
from stce_jax.errors import ConfigError
from stce_jax.models.ops import supertoken
from stce_jax.models.ops.supertoken import cluster_super_tokens, grid_shape

GOLDEN = ("a_B2_H8_W8_C16_s2_n1", "a_B2_H8_W8_C16_s2_n3", "c_B1_H56_W56_C32_s4_n3")


def random_features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def gradient(features, cotangent, *args, **options):
    """d sum(tokens * cotangent) / d features."""
    return jax.jit(jax.grad(lambda x: (cluster_super_tokens(x, *args, **options)[0] * cotangent).sum()))(features)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_equals_the_golden_vectors(test_data, name, dtype, border):
    golden = np.load(test_data / "golden" / f"{name}.npz")
    cell, iterations = int(golden["stride"]), int(golden["n_iter"])
    suffix = "" if border == "zero" else "_masked"

    def tolerance(array):
        return 2e-5 if dtype == np.float32 else 1e-10 if array.dtype == np.float64 else 1e-6

    with jax.enable_x64(True):
        features = jnp.asarray(golden["x"].astype(dtype))
        cotangent = golden["cotangent"].astype(dtype)
        tokens, affinity = jax.jit(lambda x: cluster_super_tokens(x, cell, iterations, border=border))(features)
        assert tokens.dtype == affinity.dtype == dtype
        computed = {
            "out": tokens,
            "q": affinity,
            "grad_x": gradient(features, cotangent, cell, iterations, border=border),
        }
        if border == "zero" and "grad_x_nostop" in golden:
            computed["grad_x_nostop"] = gradient(features, cotangent, cell, iterations, differentiable=True)
    for key, value in computed.items():
        key = key if key == "grad_x_nostop" else key + suffix
        if key in golden:  # the largest case has no masked gradient
            expected = golden[key]
            np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance(expected), err_msg=f"{name}: {key}")


def clustered(features, *args, **options):
    return jax.jit(lambda x: cluster_super_tokens(x, *args, **options))(features)


@pytest.mark.slow
@settings(max_examples=15)  # each is another shape, to be compiled
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    cell=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    iterations=st.integers(1, 3),
    border=st.sampled_from(["zero", "mask"]),
)
def test_equals_the_naive_form_for_any_size(height, width, cell, iterations, border):
    features = random_features(1, height, width, 3)
    expected = numpy_reference.cluster_super_tokens(features, cell, iterations, border)
    with jax.enable_x64(True):
        actual = clustered(jnp.asarray(features), cell, iterations, border=border)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-12, err_msg="tokens")
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-12, err_msg="affinity")
    assert actual[0].shape[1:3] == grid_shape(height, width, cell)


@pytest.mark.slow
@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize("block", [(1, 16), (3, 4)])
def test_does_not_depend_on_how_the_grid_is_cut_into_blocks(monkeypatch, block, border):
    """A grid of 5 x 7 cells, which the blocks do not divide or are wider than."""
    features, cotangent = random_features(2, 10, 21, 3), random_features(2, 5, 7, 3, seed=1)

    def everything():
        def loss(features):
            tokens, affinity = cluster_super_tokens(features, (2, 3), 2, border=border, differentiable=True)
            return (tokens * cotangent).sum(), (tokens, affinity)

        slope, outputs = jax.jit(jax.grad(loss, has_aux=True))(features)
        return *outputs, slope

    with jax.enable_x64(True):
        expected = everything()
        monkeypatch.setattr(supertoken, "_BLOCK", block)
        actual = everything()
    for name, one, other in zip(("tokens", "affinity", "gradient"), actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12, err_msg=name)


def test_multiply_adds_grow_with_the_tokens():
    """A map of 512 pixels a side has 16 times the tokens of one of 128, and is 16 times the work."""
    counts = [
        count_multiply_adds(lambda x: cluster_super_tokens(x, 2, 3)[0], jax.ShapeDtypeStruct((1, n, n, 8), "float32"))
        for n in (128, 512)
    ]
    assert counts[1] == 16 * counts[0]


@pytest.mark.slow
@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize("size, cell, iterations", [((5, 7), (2, 3), 1), ((4, 6), (2, 2), 3), ((3, 3), (1, 1), 2)])
def test_differentiable_gradient_equals_finite_differences(border, size, cell, iterations):
    features = random_features(1, *size, 2)
    with jax.enable_x64(True):
        cotangent = random_features(1, *grid_shape(*size, cell), 2, seed=1)
        actual = gradient(jnp.asarray(features), cotangent, cell, iterations, border=border, differentiable=True)
    expected, step = np.zeros_like(features), 1e-6
    for index in np.ndindex(features.shape):
        values = []
        for sign in (1, -1):
            moved = features.copy()
            moved[index] += sign * step
            values.append((numpy_reference.cluster_super_tokens(moved, cell, iterations, border)[0] * cotangent).sum())
        expected[index] = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(actual, expected, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_default_gradient_holds_affinities_constant(border):
    """d/dx_p = sum_k q[p, k] * cotangent[k] / shares[k], with q and its sums as numbers."""
    features, cell = random_features(1, 6, 8, 4), (2, 2)
    _, affinity = numpy_reference.cluster_super_tokens(features, cell, 3, border)
    cotangent = random_features(1, 3, 4, 4, seed=1)
    shares, expected = np.zeros((3, 4)), np.zeros_like(features)
    neighbours = [
        (y, x, k, y // 2 + k // 3 - 1, x // 2 + k % 3 - 1) for y in range(6) for x in range(8) for k in range(9)
    ]
    neighbours = [entry for entry in neighbours if 0 <= entry[3] < 3 and 0 <= entry[4] < 4]
    for y, x, k, i, j in neighbours:
        shares[i, j] += affinity[0, y, x, k]
    for y, x, k, i, j in neighbours:
        expected[0, y, x] += affinity[0, y, x, k] * cotangent[0, i, j] / (shares[i, j] + 1e-12)
    with jax.enable_x64(True):
        actual = gradient(jnp.asarray(features), cotangent, 2, 3, border=border)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("differentiable", [False, True])
def test_pixels_out_of_reach_have_exactly_zero_gradient(iterations, differentiable):
    reach = 2 * iterations if differentiable else 1
    features = jnp.asarray(random_features(1, 22, 22, 3), jnp.float32)
    cotangent = np.zeros((1, 11, 11, 3), np.float32)
    cotangent[0, 5, 5] = 1.0
    found = np.abs(gradient(features, cotangent, 2, iterations, differentiable=differentiable)[0]).sum(axis=-1)
    cells = np.arange(22) // 2
    near = np.abs(cells - 5) <= reach
    assert (found[~(near[:, None] & near[None, :])] == 0).all(), f"a pixel beyond {reach} cells has a gradient"
    assert found[np.ix_(near, near)].astype(bool).mean() > 0.9, f"pixels within {reach} cells have none"


@pytest.mark.slow
def test_mask_border_drops_nothing_and_affinities_sum_to_one():
    features = jnp.asarray(random_features(2, 7, 9, 5), jnp.float32)
    for border in ("zero", "mask"):
        _, affinity = clustered(features, (2, 3), 2, border=border)
        assert affinity.shape == (2, 8, 9, 9)
        np.testing.assert_allclose(affinity.sum(axis=-1), 1.0, rtol=1e-6)
    assert (affinity[:, 0, :, :3] == 0).all(), "mask: a token of the first row gives something to the row above it"


def test_tokens_stay_among_the_features():
    """Super tokens are weighted means: channel by channel they lie between the smallest and the largest feature."""
    features = jnp.asarray(random_features(2, 8, 8, 4), jnp.float32)
    tokens, _ = clustered(features, 2, 3, border="mask")
    assert (tokens <= features.max(axis=(1, 2), keepdims=True) + 1e-6).all()
    assert (tokens >= features.min(axis=(1, 2), keepdims=True) - 1e-6).all()


@pytest.mark.slow
def test_images_of_a_batch_do_not_see_each_other():
    features = jnp.asarray(random_features(3, 6, 6, 4), jnp.float32)
    together, _ = clustered(features, 2, 2)
    for index in range(3):
        alone, _ = clustered(features[index : index + 1], 2, 2)
        np.testing.assert_allclose(together[index], alone[0], atol=1e-6, err_msg=f"image {index}")


@pytest.mark.slow
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_extreme_inputs_stay_finite(border, differentiable):
    normal = random_features(1, 8, 8, 16)
    mixed = normal * 1e4
    mixed[:, ::2] *= 1e-8
    inputs = {
        "constant": np.ones_like(normal),
        "zero": np.zeros_like(normal),
        "huge": normal * 1e4,
        "tiny": normal * 1e-30,
        "huge beside tiny": mixed,
    }

    @jax.jit
    def everything(features):
        def loss(x):
            tokens, affinity = cluster_super_tokens(x, 2, 3, border=border, differentiable=differentiable)
            return tokens.sum(), (tokens, affinity)

        slope, (tokens, affinity) = jax.grad(loss, has_aux=True)(features)
        return {"tokens": tokens, "affinity": affinity, "gradient": slope}

    for name, features in inputs.items():
        outputs = everything(jnp.asarray(features, jnp.float32))
        for key, array in outputs.items():
            assert np.isfinite(array).all(), f"{key} of {name} input"
        if name == "constant" and border == "mask":
            np.testing.assert_allclose(outputs["tokens"], 1.0, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, computed", [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32")])
def test_computes_in_float32_at_least(dtype, computed):
    features = jnp.asarray(random_features(1, 6, 6, 4), dtype)
    tokens, affinity = clustered(features, 2)
    raised, _ = clustered(features.astype(jnp.float32), 2)
    assert tokens.dtype == affinity.dtype == jnp.dtype(computed)
    np.testing.assert_array_equal(tokens, raised)


def test_iteration_is_one_scan_of_t_minus_one_turns():
    jaxpr = jax.make_jaxpr(lambda x: cluster_super_tokens(x, 2, 4)[0])(jnp.zeros((1, 8, 8, 4)))
    scans = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [3]


@pytest.mark.parametrize(
    "options, named",
    [
        ({"cell": 0}, "cell is 0"),
        ({"cell": (2, 2, 2)}, "cell is (2, 2, 2)"),
        ({"cell": 1.5}, "cell is 1.5"),
        ({"iterations": 0}, "iterations is 0"),
        ({"border": "wrap"}, "border is 'wrap'"),
    ],
)
def test_bad_arguments_are_refused(options, named):
    options = {"cell": 2} | options
    with pytest.raises(ConfigError) as error:
        cluster_super_tokens(jnp.zeros((1, 4, 4, 2)), **options)
    assert named in str(error.value)
