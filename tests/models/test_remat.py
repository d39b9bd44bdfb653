"""`remat`: numbers stay, with draws, statistics and every derivative, and XLA for CPUs keeps no activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.factory import create_model, model_options
from stce_jax.models.ops.ordering import after_on_cpus
from stce_jax.models.remat import remat

WIDTH, DEPTH, ROWS = 8, 6, 32_768


class Branch(nn.Module):
    """Draws, statistics, something sown, and arrays and other things as arguments."""

    @nn.compact
    def __call__(self, inputs, scale=None, train=False):
        hidden = nn.Dropout(0.5, deterministic=not train)(nn.Dense(16 * WIDTH)(inputs))
        hidden = nn.BatchNorm(use_running_average=not train)(jnp.tanh(hidden))
        self.sow("intermediates", "hidden", hidden)
        outputs = nn.Dropout(0.5, deterministic=not train)(nn.Dense(WIDTH)(hidden))
        return inputs + (outputs if scale is None else scale * outputs)


class Branches(nn.Module):
    """Branches one after another; how they are lifted is `lift`."""

    lift: object = None
    train: bool = True

    @nn.compact
    def __call__(self, inputs, scale=None):
        kind = Branch if self.lift is None else self.lift(Branch)
        for index in range(DEPTH):
            inputs = kind(name=f"branch_{index}")(inputs, scale, train=self.train)
        return inputs


def inputs(rows):
    return np.random.default_rng(0).normal(size=(rows, WIDTH))


@functools.cache
def variables():
    shapes = jax.eval_shape(Branches(train=False).init, jax.random.key(0), jnp.zeros((1, WIDTH)))
    rng = np.random.default_rng(1)
    return {
        kind: jax.tree.map(lambda leaf: 1 + 0.3 * rng.uniform(size=leaf.shape), shapes[kind])
        for kind in ("params", "batch_stats")
    }


def loss(module, params, inputs, scale):
    """A loss of the outputs and of what is sown, with the new statistics."""
    given = {"params": params, "batch_stats": variables()["batch_stats"]}
    kept = ["batch_stats", "intermediates"]
    outputs, new = module.apply(given, inputs, scale, mutable=kept, rngs={"dropout": jax.random.key(3)})
    sown = sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(new["intermediates"]))
    return (outputs**2).sum() + sown, new["batch_stats"]


def compared(one, other, message):
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(leaves) == len(others) > 0, message
    for leaf, again in zip(leaves, others, strict=True):
        assert np.isfinite(leaf).all(), f"{message}: not finite"
        np.testing.assert_allclose(again, leaf, rtol=1e-9, atol=1e-9 * np.abs(leaf).max(), err_msg=message)


@pytest.mark.parametrize("compiled", [False, True])
def test_draws_statistics_and_gradients_are_those_without(compiled):
    with jax.enable_x64(True):
        outcomes = []
        for lift in (None, remat, functools.partial(remat, in_loop=True)):
            function = jax.value_and_grad(functools.partial(loss, Branches(lift)), argnums=(0, 1, 2), has_aux=True)
            function = jax.jit(function) if compiled else function
            outcomes.append(function(variables()["params"], inputs(16), np.float64(0.7)))
    compared(outcomes[0], outcomes[1], "remat changes something")
    compared(outcomes[0], outcomes[2], "remat in a loop changes something")


def test_initial_parameters_and_their_names_stay():
    made = [Branches(lift, train=False).init(jax.random.key(0), jnp.zeros((1, WIDTH))) for lift in (None, remat)]
    assert jax.tree.structure(made[0]) == jax.tree.structure(made[1])
    jax.tree.map(np.testing.assert_array_equal, *made)


DERIVATIVES = {
    "forward": lambda number, start, along: jax.jvp(number, (start,), (along,)),
    "forward over reverse": lambda number, start, along: jax.jvp(jax.grad(number), (start,), (along,)),
    "reverse over reverse": lambda number, start, along: jax.grad(lambda at: (jax.grad(number)(at) * along).sum())(
        start
    ),
    "vmap": lambda number, start, along: jax.vmap(number)(np.stack([start, along])),
    "vmap of grad": lambda number, start, along: jax.vmap(jax.grad(number))(np.stack([start, along])),
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_other_derivatives_are_those_without(kind):
    def number(lift, inputs):
        return loss(Branches(lift), variables()["params"], inputs, None)[0]

    start, along = inputs(6), np.random.default_rng(2).normal(size=(6, WIDTH))
    with jax.enable_x64(True):
        plain, again = (DERIVATIVES[kind](functools.partial(number, lift), start, along) for lift in (None, remat))
    compared(plain, again, kind)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_orders_the_work_changes_no_value(number):
    """Whatever comes before, and for every kind of array."""
    first = {"numbers": jnp.full((2, 3), number), "none": jnp.zeros((0, 3)), "integers": jnp.arange(3)}
    later = [jnp.arange(3.0), jnp.arange(3), jnp.array([True]), jax.random.key(5), jax.random.PRNGKey(5), jnp.zeros(0)]
    later += [jnp.arange(3.0, dtype=jnp.bfloat16)]
    for found in (after_on_cpus(first, later), jax.jit(after_on_cpus)(first, later), after_on_cpus({}, later)):
        for given, kept in zip(later, found, strict=True):
            assert given.dtype == kept.dtype
            is_key = jnp.issubdtype(given.dtype, jax.dtypes.prng_key)
            np.testing.assert_array_equal(*(jax.random.key_data(key) if is_key else key for key in (given, kept)))


def test_arrays_from_around_a_module_have_gradients():
    class Around(nn.Module):
        again: bool

        @nn.compact
        def __call__(self, inputs, factor):
            class Within(nn.Module):
                @nn.compact
                def __call__(self, inputs):
                    return jnp.sin(inputs * factor)

            return (remat(Within) if self.again else Within)()(inputs)

    def total(again, factor):
        return Around(again).apply({}, jnp.arange(4.0), factor).sum()

    plain, again = (jax.jit(jax.grad(functools.partial(total, again)))(0.5) for again in (False, True))
    np.testing.assert_allclose(again, plain, rtol=1e-6)


def test_of_parameters_alike_on_all_devices_gradients_are_added_up():
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    alike, each_one = PartitionSpec(), PartitionSpec("devices")
    with jax.enable_x64(True):
        outcomes = []
        for lift in (None, remat):

            def slopes(params, inputs, lift=lift):
                def mean(params):
                    given = {"params": params, "batch_stats": variables()["batch_stats"]}
                    outputs = Branches(lift, train=False).apply(given, inputs)
                    return jax.lax.pmean((outputs**2).sum(), "devices")

                return jax.grad(mean)(params)

            mapped = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=(alike, each_one), out_specs=alike))
            outcomes.append(mapped(variables()["params"], inputs(4 * mesh.size)))
    compared(*outcomes, "remat within shard_map")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_xla_for_cpus_keeps_no_activations(dtype):
    """Of six branches, each 16 times as wide within as without, the plain step keeps several wide arrays of each."""

    def planned(lift):
        def total(params, inputs):
            given = {"params": params, "batch_stats": variables()["batch_stats"]}
            outputs, _ = Branches(lift).apply(
                given, inputs, mutable=["batch_stats"], rngs={"dropout": jax.random.key(3)}
            )
            return (outputs**2).sum()

        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), variables()["params"])
        shape = jax.ShapeDtypeStruct((ROWS, WIDTH), dtype)
        return jax.jit(jax.grad(total)).lower(params, shape).compile().memory_analysis().temp_size_in_bytes

    plain, again = planned(None), planned(remat)
    assert again < plain / 3, f"{again / 1e6:.1f} MB with remat, {plain / 1e6:.1f} MB without"


WITH_MODULES = [name for name, kind in EMBEDDINGS.items() if "remat" in kind.__dataclass_fields__]
TINY = {"stem_widths": (6, 8), "stem_strides": (2, 2)}
OWN = {"mobilevit": {"stem_widths": (4, 6, 8), "stem_strides": (2, 1, 2)}, "svit": {"stem_widths": (4, 8)}}


def test_every_embedding_with_batch_norm_recomputes_its_modules():
    """Only one whose convolutions have no BatchNorm keeps so little that it need not."""
    normed = {name for name, kind in EMBEDDINGS.items() if "axis_name" in kind.__dataclass_fields__}
    assert normed == set(WITH_MODULES)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_MODULES)
def test_embeddings_compute_the_same(name):
    """Tokens, statistics and gradients, in float64."""
    embedding = EMBEDDINGS[name](width=8, dtype=jnp.float64, **{**TINY, **OWN.get(name, {})})
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
    rng = np.random.default_rng(1)

    def total(module, params, images):
        found, new = module.apply({**given, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sin(found.values).sum(), (found.values, new)

    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: embedding.init(jax.random.key(0), images, train=False))
        given = jax.tree.map(lambda leaf: 0.5 + rng.uniform(size=leaf.shape), shapes)
        plain, again = (
            jax.jit(jax.value_and_grad(functools.partial(total, module), argnums=(0, 1), has_aux=True))(
                given["params"], images
            )
            for module in (embedding, embedding.clone(remat=True))
        )
    compared(plain, again, name)


def test_the_body_tells_its_embedding():
    assert "remat" in model_options("vit_ti_stce") and "remat" in model_options("vit_ti_patch")
    for again in (False, True):
        assert create_model("vit_ti_stce", num_classes=2, image_size=32, remat=again).embedding.remat == again
    create_model("vit_ti_patch", num_classes=2, image_size=32, remat=True)  # whose embedding has nothing to recompute
