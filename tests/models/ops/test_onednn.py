"""Products and convolutions by oneDNN against their plain forms, and where it computes none."""

import functools
import types

import chex
import jax
import jax.export
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from form_checks import check_form

from stce_jax.models.conv_layers import ConvModule
from stce_jax.models.factory import create_model
from stce_jax.models.ops import attention, convolution, linear, onednn
from stce_jax.models.ops.parts import whole_batches
from stce_jax.platform import cpu_library

CONVOLUTIONS = {
    # name: (inputs, kernel, stride, padding)
    "3x3": ((2, 5, 7, 9), (3, 3, 9, 4), 1, ((1, 1), (1, 1))),
    "3x3, stride 2": ((2, 6, 5, 9), (3, 3, 9, 4), 2, ((1, 1), (1, 1))),
    "an image": ((2, 6, 5, 3), (3, 3, 3, 4), 2, ((1, 1), (1, 1))),
    "an image, many features": ((2, 6, 5, 3), (3, 3, 3, 20), 2, ((1, 1), (1, 1))),
    "1x1": ((2, 3, 4, 8), (1, 1, 8, 5), 1, ((0, 0), (0, 0))),
    "7x7, stride 4": ((1, 9, 11, 3), (7, 7, 3, 4), 4, ((3, 3), (3, 3))),
    "one-sided": ((1, 4, 5, 8), (2, 1, 8, 3), 1, ((0, 1), (0, 0))),
    "more padding than the kernel has": ((1, 4, 4, 8), (1, 1, 8, 3), 1, ((1, 1), (2, 0))),
}


@pytest.fixture
def served(monkeypatch):
    """A process with one CPU device and enough to compute, in which the smallest product is oneDNN's."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(linear, "FEWEST_MULTIPLY_ADDS", 0)
    with cpu_library.chosen_for(cpu_library.ENOUGH_WORK):
        if not cpu_library.onednn_computes():
            pytest.skip("this jaxlib has no oneDNN, or is one with which nobody has tried it")
        jax.clear_caches()
        yield
    jax.clear_caches()


def convolve(name):
    *_, stride, padding = CONVOLUTIONS[name]
    options = {"stride": stride, "padding": padding}
    return functools.partial(convolution.convolve, **options), functools.partial(convolution.convolve_plain, **options)


def shapes_of(name):
    return CONVOLUTIONS[name][:2]


def random(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def calls(function, *operands):
    """How often the compiled program calls oneDNN for {convolutions, products}."""
    text = jax.jit(function).lower(*operands).compile().as_text()
    return text.count('"__onednn$convolution"'), text.count('"__onednn$matmul"')


def test_the_locked_jaxlib_is_one_of_those_tried():
    import jaxlib

    assert jaxlib.__version__ in cpu_library.JAXLIB_VERSIONS, "try this file with it, and add it to the versions"


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_equals_its_plain_form_with_its_gradients(name, served):
    operation, plain = convolve(name)
    assert calls(operation, *random(*shapes_of(name))) == (1, 0)
    check_form(operation, plain, shapes_of(name), jnp.float32, 1e-5)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_product_equals_its_plain_form_with_its_gradients(turned, batch, served):
    shapes = [(*batch, *((7, 5) if turned else (5, 7))), (*batch, 7, 4)]
    operation = functools.partial(linear.multiply, turned=turned)
    assert calls(operation, *random(*shapes)) == (0, 1)
    check_form(operation, functools.partial(linear.multiply_plain, turned=turned), shapes, jnp.float32, 1e-5)


@pytest.mark.parametrize(
    ("operation", "plain", "shapes", "forward", "both"),
    [
        # The gradient of a kernel is a product of oneDNN's, that of a linear layer's inputs is XLA's.
        (lambda *own: linear.product(*own, True), linear.product_plain, [(2, 3, 5), (5, 4)], (0, 1), (0, 2)),
        # Stride 2: four convolutions for the inputs' gradient, nine products for the kernel's.
        (
            convolution.halving_convolution,
            convolution.halving_convolution_plain,
            [(2, 5, 6, 8), (3, 3, 8, 4)],
            (1, 0),
            (5, 9),
        ),
        # The weighted sum of the values; of the gradients all but that of the weights.
        (
            attention.attention_by_products,
            attention.attention_plain,
            [(2, 5, 2, 4), (2, 6, 2, 4), (2, 6, 2, 4)],
            (0, 1),
            (0, 4),
        ),
    ],
    ids=["linear layer", "halving convolution", "attention"],
)
def test_what_is_made_of_them_equals_its_plain_form(operation, plain, shapes, forward, both, served):
    check_form(operation, plain, shapes, jnp.float32, 1e-5)
    operands = random(*shapes)
    assert calls(operation, *operands) == forward

    def gradients(*operands):
        return jax.grad(lambda *own: jnp.sin(operation(*own)).sum(), argnums=tuple(range(len(operands))))(*operands)

    assert calls(gradients, *operands) == both


@pytest.mark.parametrize("name", ["3x3", "3x3, stride 2"])
def test_other_derivatives_and_batches_of_batches(name, served):
    operation, plain = convolve(name)
    inputs, kernel, *tangents = random(*shapes_of(name), *shapes_of(name))

    def of(form):
        def loss(inputs, kernel):
            return jnp.sin(form(inputs, kernel)).sum()

        curved = jax.jvp(jax.grad(loss, argnums=(0, 1)), (inputs, kernel), tuple(tangents))
        mapped = jax.vmap(form, in_axes=(None, 0))(inputs, jnp.stack([kernel, 2 * kernel]))
        return curved, mapped, jax.jvp(form, (inputs, kernel), tuple(tangents))

    chex.assert_trees_all_close(jax.jit(lambda: of(operation))(), of(plain), atol=1e-4, rtol=1e-4)


def test_an_image_has_the_same_bits_in_every_batch(served):
    operation, _ = convolve("3x3")
    images, kernel = random((8, 14, 14, 32), (3, 3, 32, 48))
    compute = jax.jit(operation)
    whole = compute(images, kernel)
    for count in (1, 3):
        np.testing.assert_array_equal(compute(images[:count], kernel), whole[:count])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_module_computes_whole_batches_and_the_same(stride, served):
    module = ConvModule(features=16, stride=stride)
    (inputs,) = random((8, 9, 10, 8))
    variables = module.init(jax.random.key(0), inputs, train=False)

    def gradients(params, inputs):
        def loss(params, inputs):
            outputs, _ = module.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
            return jnp.sin(outputs).sum()

        return jax.grad(loss, argnums=(0, 1))(params, inputs)

    operands = variables["params"], inputs
    convolutions, products = calls(gradients, *operands)
    assert (convolutions, products) == (2 if stride == 1 else 5, 9)
    found = jax.jit(gradients)(*operands)
    with whole_batches():
        expected = jax.jit(lambda *own: gradients(*own))(*operands)
    chex.assert_trees_all_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_ti_stce", "vit_ti_conv", "swin_t", "mobilevit_s", "cvt_13"])
def test_a_model_gives_the_same_logits(name, served):
    model = create_model(name, num_classes=5, image_size=64)
    (images,) = random((2, 64, 64, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    apply = functools.partial(model.apply, train=False)
    assert sum(calls(apply, variables, images)) > 0
    found = jax.jit(apply)(variables, images)
    with whole_batches():
        expected = jax.jit(lambda *own: apply(*own))(variables, images)
    chex.assert_trees_all_close(found, expected, atol=2e-5, rtol=1e-4)


def test_what_is_exported_calls_nothing_of_it(served):
    operation, plain = convolve("3x3")
    inputs, kernel = random(*shapes_of("3x3"))
    exported = jax.export.export(jax.jit(operation))(inputs, kernel)
    assert "__onednn" not in exported.mlir_module()
    chex.assert_trees_all_close(exported.call(inputs, kernel), plain(inputs, kernel), atol=1e-5)


def with_two_devices(patch):
    patch.setattr(jax, "device_count", lambda: 2)


def on_a_gpu(patch):
    patch.setattr(jax, "default_backend", lambda: "gpu")


def with_another_jaxlib(patch):
    patch.setattr(cpu_library, "JAXLIB_VERSIONS", ("0.0.1",))


def with_a_build_without_it(patch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: XLA is not built with oneDNN.")

    patch.setattr(cpu_library, "call_onednn", refuse)


def with_kept_programs(patch):
    patch.setattr(
        cpu_library, "jax", types.SimpleNamespace(config=types.SimpleNamespace(jax_compilation_cache_dir="."))
    )


@pytest.mark.parametrize(
    "elsewhere",
    [
        with_two_devices,
        on_a_gpu,
        with_another_jaxlib,
        with_a_build_without_it,
        with_kept_programs,
    ],
)
def test_elsewhere_xla_computes(elsewhere, served, monkeypatch):
    operands = random((5, 7), (7, 4))
    try:
        with monkeypatch.context() as patch:
            elsewhere(patch)
            cpu_library._is_there.cache_clear()
            assert not onednn.serves(*operands)
            assert calls(linear.multiply, *operands) == (0, 0)
    finally:
        cpu_library._is_there.cache_clear()
    assert onednn.serves(*operands)


def test_with_little_to_compute_xla_computes(served):
    operands = random((5, 7), (7, 4))
    with cpu_library.chosen_for(0.0):
        assert not onednn.serves(*operands)
        assert calls(linear.multiply, *operands) == (0, 0)
    assert calls(linear.multiply, *operands) == (0, 1), "what was traced within is not traced anew"


def test_a_function_traced_with_it_calls_nothing_of_it_in_a_program_that_may_be_kept(served, monkeypatch):
    operands = random((5, 7), (7, 4))
    traced = jax.make_jaxpr(linear.multiply)(*operands)
    assert "onednn_product" in str(traced)
    monkeypatch.setattr(onednn, "onednn_computes", lambda: False)
    assert calls(jax.extend.core.jaxpr_as_fun(traced), *operands) == (0, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes_are_xlas(dtype, served):
    assert not onednn.serves(jnp.ones((5, 7), dtype), jnp.ones((7, 4), dtype))


def test_empty_arrays_axes_without_a_number_and_shares_of_devices_are_xlas(served):
    assert not onednn.serves(jnp.ones((0, 7)), jnp.ones((7, 4)))
    (size,) = jax.export.symbolic_shape("b")
    for left, right in (((size, 7), (7, 4)), ((5, size), (size, 4))):
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (left, right))
        assert "__onednn" not in jax.export.export(jax.jit(linear.multiply))(*shapes).mlir_module()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("devices",))
    shares = jax.P("devices")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(shares, jax.P()), out_specs=shares)
    def in_shares(left, right):
        assert not onednn.serves(left, right)
        return linear.multiply(left, right)

    left, right = random((5, 7), (7, 4))
    np.testing.assert_allclose(in_shares(left, right), left @ right, atol=1e-5)


def test_a_product_of_few_numbers_is_xlas(served, monkeypatch):
    monkeypatch.setattr(linear, "FEWEST_MULTIPLY_ADDS", 5 * 7 * 4)
    assert calls(linear.multiply, *random((5, 7), (7, 4))) == (0, 1)
    assert calls(linear.multiply, *random((5, 7), (7, 3))) == (0, 0)


def test_kernels_as_large_as_a_map_and_negative_padding_are_xlas(served):
    side = convolution.LARGEST_SIDE + 1
    large = functools.partial(convolution.convolve, stride=1, padding=((0, 0), (0, 0)))
    assert calls(large, *random((1, side, side, 8), (side, side, 8, 3))) == (0, 0)
    cut = functools.partial(convolution.convolve, stride=1, padding=((-1, 0), (0, 0)))
    assert calls(cut, *random((1, 5, 5, 8), (3, 3, 8, 3))) == (0, 0)
