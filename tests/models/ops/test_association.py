"""What aggregates by affinities and scatters back: against the golden vectors of SViT's and HCFormer's published code,
dense matrices in NumPy, and its own properties."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from jax.extend.core import jaxprs_in_params

from stce_jax.models.ops.supertoken import (
    SuperTokenAssociation,
    associate,
    cluster_super_tokens,
    grid_shape,
    pool_cells,
)

SVIT = ("8x8_s2_it3", "8x12_s4x3_it1", "14x10_s4_it1_padded", "4x4_s4_single_stoken")
SHAPES = [((5, 7), (2, 3)), ((4, 6), (2, 2)), ((9, 4), (3, 1)), ((2, 2), (2, 2))]  # of the features, of a cell


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def channels_last(array):
    return np.moveaxis(array, 1, -1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SVIT)
def test_equals_svits_golden_vectors(test_data, name):
    golden = np.load(test_data / "golden" / "reductions" / f"svit_sta_{name}.npz")
    features = channels_last(golden["in_x"])
    cell = tuple(map(int, golden["cfg_stoken_size"]))

    @jax.jit
    def both_ways(features, attended):
        association = associate(features, cell, int(golden["cfg_n_iter"]))
        return association.aggregate(features), association.scatter(attended)

    with jax.enable_x64(True):
        super_tokens, pixels = both_ways(features, channels_last(golden["mid_stoken_after_attention"]))
    np.testing.assert_allclose(super_tokens, channels_last(golden["mid_stoken_before_attention"]), atol=1e-10)
    np.testing.assert_allclose(pixels, channels_last(golden["out_x"]), atol=1e-10)


@pytest.mark.parametrize("name", ["8x8", "6x10"])
def test_given_super_tokens_equal_hcformers_golden_vectors(test_data, name):
    """HCFormer assigns pixels to a coarser map: one iteration from given super tokens, the border masked."""
    golden = np.load(test_data / "golden" / "reductions" / f"hcformer_cluster_{name}.npz")

    def embedded(kind):
        scale, bias, kernel = (golden[f"w.{kind}_{part}"] for part in ("norm.weight", "norm.bias", "emb.weight"))
        maps = numpy_reference.layer_norm(channels_last(golden[f"in_{kind}"]), {"scale": scale, "bias": bias}, 1e-5)
        maps = maps @ kernel[:, :, 0, 0].T
        return maps / np.linalg.norm(maps, axis=-1, keepdims=True)

    fine, coarse = embedded("fine"), embedded("coarse")
    fine = fine * np.sqrt(fine.shape[-1]) / (abs(golden["w.temp"].astype(np.float64)) + 1e-8)

    @jax.jit
    def upsample(fine, coarse, signal):
        association = associate(fine, 2, 1, border="mask", initial=coarse)
        return association.affinity(), association.scatter(signal)

    with jax.enable_x64(True):
        affinity, pixels = upsample(fine, coarse, channels_last(golden["in_coarse_signal"]))
    np.testing.assert_allclose(affinity, channels_last(golden["out_assignment"]), atol=1e-10)
    np.testing.assert_allclose(pixels, channels_last(golden["out_upsampled"]), atol=1e-10)


@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize(("size", "cell"), SHAPES)
def test_equals_the_dense_form_with_its_gradients(size, cell, border):
    """Values of another width than the features'; the gradient of each is the other's matrix, transposed."""
    features, values, grid = draw(2, *size, 4), draw(2, *size, 5, seed=1), grid_shape(*size, cell)
    super_tokens = draw(2, *grid, 5, seed=2)
    _, affinity = numpy_reference.cluster_super_tokens(features, cell, 2, border)
    dense = numpy_reference.association_matrix(affinity, cell)
    shares = dense.sum(axis=1).reshape(2, *grid, 1)
    with jax.enable_x64(True):
        features, values, super_tokens = map(jnp.asarray, (features, values, super_tokens))
        association = jax.jit(lambda x: associate(x, cell, 2, border=border))(features)
        means, to_values = jax.vjp(jax.jit(association.aggregate), values)
        pixels, to_super_tokens = jax.vjp(jax.jit(association.scatter), super_tokens)
        found = {
            "affinity": (association.affinity(), affinity),
            "shares": (association.shares()[..., None], shares),
            "aggregate": (means, numpy_reference.aggregate(values, affinity, cell)),
            "scatter": (pixels, numpy_reference.scatter(super_tokens, affinity, cell, size)),
            "gradient of aggregate": (
                to_values(super_tokens)[0],
                numpy_reference.scatter(super_tokens / (shares + 1e-12), affinity, cell, size),
            ),
            "gradient of scatter": (
                to_super_tokens(values)[0],
                numpy_reference.aggregate(values, affinity, cell) * (shares + 1e-12),
            ),
        }
    for name, (actual, expected) in found.items():
        np.testing.assert_allclose(actual, expected, atol=1e-12, err_msg=name)


def test_the_means_of_the_features_are_the_super_tokens():
    features = jnp.asarray(draw(2, 7, 9, 4), jnp.bfloat16)

    @jax.jit
    def both(features):
        association = associate(features, (2, 3), 2)
        return (association.aggregate(features), association.affinity()), cluster_super_tokens(features, (2, 3), 2)

    for actual, expected in zip(*both(features), strict=True):
        assert actual.dtype == expected.dtype == jnp.float32
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_reach_the_features_through_affinities_if_differentiable(differentiable):
    features, values = draw(1, 4, 5, 2), draw(1, 4, 5, 3, seed=1)
    cotangent, cell = draw(1, 4, 5, 3, seed=2), (2, 2)

    def loss(features):
        association = associate(features, cell, 2, differentiable=differentiable)
        return (association.scatter(association.aggregate(values)) * cotangent).sum()

    def reference(features):
        _, affinity = numpy_reference.cluster_super_tokens(features, cell, 2)
        super_tokens = numpy_reference.aggregate(values, affinity, cell)
        return (numpy_reference.scatter(super_tokens, affinity, cell, (4, 5)) * cotangent).sum()

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss))(jnp.asarray(features))
    if not differentiable:
        assert not np.any(gradient)
        return
    expected, step = np.zeros_like(features), 1e-6
    for index in np.ndindex(features.shape):
        changes = [np.zeros_like(features), np.zeros_like(features)]
        changes[0][index], changes[1][index] = step, -step
        more, less = (reference(features + change) for change in changes)
        expected[index] = (more - less) / (2 * step)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_iterations_continue_from_given_super_tokens():
    features = jnp.asarray(draw(2, 6, 6, 4), jnp.float32)

    @jax.jit
    def affinities(features):
        first = associate(features, 2, 1)
        same = associate(features, 2, 1, initial=pool_cells(features, 2))
        second = associate(features, 2, 1, initial=first.aggregate(features))
        return first.affinity(), same.affinity(), second.affinity(), associate(features, 2, 2).affinity()

    first, same, second, two = affinities(features)
    np.testing.assert_allclose(same, first, atol=1e-6)
    np.testing.assert_allclose(second, two, atol=1e-6)
    with pytest.raises(AssertionError):
        associate(features, 2, 1, initial=jnp.zeros((2, 3, 2, 4)))


@pytest.mark.slow
def test_is_a_pytree_with_a_static_layout():
    features = jnp.asarray(draw(2, 7, 9, 4), jnp.float32)
    association = jax.jit(lambda x: associate(x, (2, 3), 1, border="mask"))(features)
    assert isinstance(association, SuperTokenAssociation)
    (affinities,) = jax.tree.leaves(association)
    assert affinities.shape[0] == 2
    through = jax.jit(lambda association, values: association.aggregate(values))(association, features)
    np.testing.assert_allclose(through, association.aggregate(features), atol=1e-6)
    assert jax.tree.structure(association) == jax.tree.structure(associate(features, (2, 3), 1, border="mask"))
    assert jax.tree.structure(association) != jax.tree.structure(associate(features, (2, 3), 1))


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


def test_aggregate_and_scatter_never_make_the_nine_neighbours():
    features, values = jnp.zeros((2, 12, 10, 4)), jnp.zeros((2, 12, 10, 5))

    def round_trip(features, values):
        association = associate(features, 2, 3, differentiable=True)
        return association.scatter(association.aggregate(values)).sum() + association.shares().sum()

    jaxpr = jax.make_jaxpr(jax.value_and_grad(round_trip, (0, 1)))(features, values).jaxpr
    nine = [shape for shape in shapes_in(jaxpr) if shape and shape[-1] == 9]
    assert not nine, f"arrays of nine neighbours: {nine}"
    whole = jax.make_jaxpr(lambda x: associate(x, 2, 3).affinity())(features).jaxpr
    assert (2, 12, 10, 9) in set(shapes_in(whole)), "this test does not find them"


def test_values_of_another_size_are_refused():
    association = associate(jnp.zeros((2, 7, 9, 4)), (2, 3), 1)
    with pytest.raises(AssertionError):
        association.aggregate(jnp.zeros((2, 8, 9, 4)))
    with pytest.raises(AssertionError):
        association.scatter(jnp.zeros((2, 3, 3, 4)))
