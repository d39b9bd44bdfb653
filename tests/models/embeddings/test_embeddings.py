"""Each embedding against plain NumPy, its tables' shapes and counts, and its behaviour on awkward sizes."""

import chex
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import numpy_reference
import pytest
from flax import linen as nn
from helpers import initial

from stce_jax.errors import ConfigError
from stce_jax.models.conv_layers import ConvModule
from stce_jax.models.embeddings import (
    Conv1x1Embed,
    ConvEmbed,
    EarlyConvEmbed,
    MaxPoolConvEmbed,
    PatchEmbed,
    SuperTokenConvEmbed,
)
from stce_jax.models.embeddings.max_pool import larger
from stce_jax.models.embeddings.stce import entropy

IMAGES = np.random.default_rng(0).normal(size=(2, 17, 14, 3)).astype(np.float32)
SMALL = {
    "patch": PatchEmbed(8, patch_size=4),
    "conv": ConvEmbed((4, 6, 8), (2, 2, 1)),
    "conv1x1": Conv1x1Embed((4, 6, 8), (2, 2, 1)),
    "earlyconv": EarlyConvEmbed(8, (4, 6), (2, 2)),
    "stce": SuperTokenConvEmbed(8, (4, 6), (2, 1), cell=2),
    "max_pool": MaxPoolConvEmbed(8, (4, 6), (2, 1), cell=2),
}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def init(module, images=IMAGES):
    return initial(module, images, train=False)


def apply(module, variables, images=IMAGES, train=False, **options):
    return jax.jit(lambda v, x: module.apply(v, x, train=train, **options))(variables, images)


def randomized(variables, seed=0):
    """Statistics and affine parameters off their initial 0 and 1, so that mixing them up shows."""
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [leaf + rng.uniform(0.1, 0.5, leaf.shape).astype("f4") for leaf in leaves])


@pytest.mark.parametrize(
    "embedding, parameters",
    [
        (PatchEmbed(), 297_600),
        (ConvEmbed(), 3_490_560),
        (Conv1x1Embed(), 2_310_912),
        (EarlyConvEmbed(), 1_021_488),
        (SuperTokenConvEmbed(), 132_192),
        (MaxPoolConvEmbed(), 132_192),
    ],
)
def test_defaults_are_the_papers_tables(embedding, parameters):
    images = jnp.zeros((1, 224, 224, 3))
    variables = jax.eval_shape(lambda: embedding.init(jax.random.key(0), images, train=False))
    tokens = jax.eval_shape(lambda v: embedding.apply(v, images, train=False), variables)
    assert count(variables["params"]) == parameters
    assert tokens.shape == (1, 196, 384) and embedding.grid(224, 224) == (14, 14)


def test_patch_embedding_equals_numpy():
    images = IMAGES[:, :16, :12]
    variables = randomized(init(SMALL["patch"], images))
    expected = numpy_reference.patch_embed(images.astype(float), variables["params"], 4)
    np.testing.assert_allclose(apply(SMALL["patch"], variables, images, False), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "conv1x1"])
def test_convolution_stack_equals_numpy(name):
    embedding = SMALL[name]
    variables = randomized(init(embedding, IMAGES))
    expected = numpy_reference.conv_stack(
        IMAGES.astype(float), variables["params"], variables["batch_stats"], embedding.stem_strides
    )
    actual = apply(embedding, variables, IMAGES, False)
    np.testing.assert_allclose(actual, expected.reshape(actual.shape), rtol=1e-5, atol=2e-5)


@pytest.mark.slow
def test_super_token_embedding_equals_numpy():
    embedding = SMALL["stce"]
    variables = randomized(init(embedding, IMAGES))
    params = variables["params"]
    features = numpy_reference.conv_stack(IMAGES.astype(float), params, variables["batch_stats"], (2, 1))
    tokens, affinity = numpy_reference.cluster_super_tokens(features, (2, 2), 3)
    expected = numpy_reference.dense(tokens.reshape(2, -1, 6), params["projection"])
    actual, sown = apply(embedding, variables, IMAGES, False, mutable=["intermediates"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(sown["intermediates"]["affinity"][0], affinity, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_module_in_training_uses_and_keeps_the_batchs_statistics(stride):
    module = ConvModule(5, stride)
    variables = init(module, IMAGES)
    params = variables["params"]
    actual, updates = apply(module, variables, IMAGES, True, mutable=["batch_stats"])
    features = numpy_reference.convolution(IMAGES.astype(float), params["convolution"]["kernel"], stride, 1)
    features = numpy_reference.gelu(features + params["convolution"]["bias"])
    np.testing.assert_allclose(actual, numpy_reference.batch_norm(features, params["norm"]), rtol=1e-5, atol=2e-5)
    running = updates["batch_stats"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.1 * features.mean(axis=(0, 1, 2)), atol=1e-6)
    biased = features.var(axis=(0, 1, 2))  # linen's running variance; PyTorch's is n / (n - 1) times as large
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * biased, atol=1e-6)


def test_strided_convolutions_are_not_shifted():
    """Mirroring an odd-sized image mirrors the result: the padding is the same on both sides."""
    module = ConvModule(4, 2)
    images = IMAGES[:, :, :13]
    variables = init(module, images)
    kernel = variables["params"]["convolution"]["kernel"]
    variables["params"]["convolution"]["kernel"] = (kernel + kernel[:, ::-1]) / 2
    straight = apply(module, variables, images, False)
    mirrored = apply(module, variables, images[:, :, ::-1], False)
    np.testing.assert_allclose(mirrored, straight[:, :, ::-1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("size", [(16, 16), (16, 12), (17, 14), (7, 30), (1, 1)])
def test_grid_tells_the_number_of_tokens_for_every_size(name, size):
    embedding, images = SMALL[name], jnp.zeros((1, *size, 3))
    if name == "patch" and (size[0] % 4 or size[1] % 4):
        with pytest.raises(ConfigError) as error:
            embedding.grid(*size)
        assert "multiple of 4" in str(error.value) and "would work" in str(error.value)
        return
    tokens = jax.eval_shape(lambda: embedding.init_with_output(jax.random.key(0), images, train=False)[0])
    rows, columns = embedding.grid(*size)
    chex.assert_shape(tokens, (1, rows * columns, 8))


def test_patch_names_the_sizes_that_work():
    with pytest.raises(ConfigError, match="230 pixels cannot be cut into patches of 16; 224 or 240 would work"):
        PatchEmbed().grid(224, 230)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_usable_inside_somebody_elses_model(name):
    class Classifier(nn.Module):
        embedding: nn.Module

        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(3)(self.embedding(images, train=train).mean(axis=1))

    model, images = Classifier(SMALL[name]), IMAGES[:, :16, :12]
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))
    logits, _ = jax.eval_shape(lambda v: model.apply(v, images, True, mutable=["batch_stats"]), variables)
    chex.assert_shape(logits, (2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32(name):
    embedding, images = SMALL[name].clone(dtype=jnp.bfloat16), IMAGES[:, :16, :12]
    variables = init(embedding, images)
    tokens = apply(embedding, variables, images, False)
    exact = apply(SMALL[name], variables, images, False)
    assert tokens.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(tokens.astype(jnp.float32), exact, atol=0.05 * np.abs(exact).max())


def test_convolutions_start_he_normal_by_fan_out():
    module = ConvModule(64, 1)
    kernel = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)), train=False)["params"]["convolution"]["kernel"]
    assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.02, "standard deviation is not sqrt(2 / fan out)"


def test_a_stem_of_unequal_widths_and_strides_is_refused():
    with pytest.raises(ConfigError, match="one positive entry a module each"):
        SuperTokenConvEmbed(8, (4, 6), (2,)).init(jax.random.key(0), IMAGES, train=False)


def test_no_iterations_mean_average_pooling():
    """Without clustering each super token is its cell's mean; rows beyond the map count as zeros, as in clustering."""
    pooled = SuperTokenConvEmbed(8, (), (), cell=(4, 5), iterations=0)
    variables = randomized(init(pooled))
    padded = np.pad(IMAGES.astype(float), ((0, 0), (0, 3), (0, 1), (0, 0)))  # [2, 20, 15, 3]
    means = padded.reshape(2, 5, 4, 3, 5, 3).mean(axis=(2, 4)).reshape(2, 15, 3)
    expected = numpy_reference.dense(means, variables["params"]["projection"])
    np.testing.assert_allclose(apply(pooled, variables), expected, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda images: pooled.apply(variables, images, train=False).sum())(IMAGES)
    assert np.all(gradient != 0), "pooling stops gradients"


def test_max_pooling_takes_the_maximum_of_what_lies_in_the_map():
    """A cell that reaches beyond the map is no larger for it, even where all is below zero."""
    pooled = MaxPoolConvEmbed(8, (), (), cell=(4, 5))
    variables = randomized(init(pooled))
    images = IMAGES - 10
    padded = np.pad(images.astype(float), ((0, 0), (0, 3), (0, 1), (0, 0)), constant_values=-np.inf)  # [2, 20, 15, 3]
    maxima = padded.reshape(2, 5, 4, 3, 5, 3).max(axis=(2, 4)).reshape(2, 15, 3)
    expected = numpy_reference.dense(maxima, variables["params"]["projection"])
    np.testing.assert_allclose(apply(pooled, variables, images), expected, rtol=1e-5, atol=1e-4)


def test_max_pooling_has_the_super_tokens_parameters_by_the_same_names():
    own, theirs = (jax.eval_shape(lambda each=each: init(each)) for each in (SMALL["max_pool"], SMALL["stce"]))
    assert jax.tree.structure(own) == jax.tree.structure(theirs)
    assert [leaf.shape for leaf in jax.tree.leaves(own)] == [leaf.shape for leaf in jax.tree.leaves(theirs)]


@pytest.mark.slow
def test_affinities_leave_their_entropy_in_evaluation_alone():
    embedding = SuperTokenConvEmbed(8, (4,), (2,), cell=2)
    variables = randomized(init(embedding))
    assert "metrics" not in variables
    _, left = apply(embedding, variables, mutable=["metrics", "intermediates"])
    (affinity,) = left["intermediates"]["affinity"]
    affinity = np.asarray(affinity, np.float64)
    expected = -(affinity * np.log(affinity)).sum(axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(left["metrics"]["affinity_entropy"], expected, rtol=1e-5)
    assert np.all((expected > 0) & (expected <= np.log(9) + 1e-6))
    _, in_training = apply(embedding, variables, train=True, mutable=["metrics", "batch_stats"])
    assert "metrics" not in in_training
    _, of_means = apply(embedding.clone(iterations=0), variables, mutable=["metrics"])
    assert not of_means.get("metrics")


def test_the_entropy_of_masked_neighbours_is_finite():
    """An affinity of exactly 0 counts as nothing."""
    affinity = np.zeros((1, 2, 2, 9), np.float32)
    affinity[..., 4] = 1
    assert float(entropy(jnp.asarray(affinity))[0]) == 0
    assert float(entropy(jnp.full((1, 2, 2, 9), 1 / 9))[0]) == pytest.approx(np.log(9), rel=1e-6)


def test_the_larger_number_has_the_gradient():
    """All of it one of two, the first if they are equal, as in PyTorch; what is no number is never lost."""
    first, second = jnp.array([1.0, 5.0, 2.0, jnp.nan, 1.0]), jnp.array([3.0, 4.0, 2.0, 1.0, jnp.nan])
    np.testing.assert_array_equal(larger(first, second), [3.0, 5.0, 2.0, np.nan, np.nan])
    slopes = jax.grad(lambda first, second: larger(first, second)[:3].sum(), argnums=(0, 1))(first, second)
    np.testing.assert_array_equal(slopes, [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def test_a_maximum_that_is_computed_twice_has_a_gradient():
    """Compiled so that XLA fuses BatchNorm into the pooling and, for the gradient, again into the comparison."""
    module = MaxPoolConvEmbed(8, (6, 8), (2, 2), cell=2)
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    variables = randomized(init(module, images))

    def total(params, images):
        given = {**variables, "params": params}
        return jnp.sin(module.apply(given, images, train=True, mutable=["batch_stats"])[0].values).sum()

    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    if jaxlib.__version__.startswith("0.10."):  # whose flag conftest.py sets
        options["xla_cpu_use_fusion_emitters"] = True
    program = jax.jit(jax.grad(total)).lower(variables["params"], images).compile(options)
    for path, leaf in jax.tree_util.tree_leaves_with_path(program(variables["params"], images)):
        assert np.isfinite(leaf).all(), f"the gradient of {jax.tree_util.keystr(path)} has numbers that are none"
