"""The linear layer's product against its plain form, with its gradients."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.ops.linear import activated_product, activated_product_plain, product, product_plain
from stce_jax.training.mesh import batch_sharding, make_mesh, replicated

pytestmark = pytest.mark.usefixtures("eight_devices")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("leading", [(5,), (2, 5)])
def test_equals_its_plain_form_with_its_gradients(leading, dtype):
    rng = np.random.default_rng(0)
    inputs, kernel, cotangent = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((*leading, 3), (3, 4), (*leading, 4))
    )
    np.testing.assert_array_equal(
        product_plain(inputs, kernel).astype(jnp.float32), jnp.matmul(inputs, kernel).astype(jnp.float32)
    )
    expected, pull_back_plain = jax.vjp(product_plain, inputs, kernel)
    outputs, pull_back = jax.vjp(lambda *operands: product(*operands, False), inputs, kernel)
    ours, plain = (outputs, pull_back(cotangent)), (expected, pull_back_plain(cotangent))
    chex.assert_trees_all_equal_dtypes(ours, plain)
    tolerance = 2e-2 if dtype == jnp.bfloat16 else 1e-5  # a digit of bfloat16 is 0.8%
    chex.assert_trees_all_close(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_behind_a_gelu_it_equals_its_plain_form_with_its_gradients(dtype, biased, monkeypatch):
    """With several devices and with one, where the GELU is computed again."""
    rng = np.random.default_rng(1)
    inputs, kernel, cotangent = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((5, 3), (3, 4), (5, 4)))
    tolerance = 4e-2 if dtype == jnp.bfloat16 else 1e-5
    for devices in (8, 1):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        jax.clear_caches()
        found = []
        for form in (activated_product, activated_product_plain):
            outputs, pull_back = jax.vjp(lambda *operands, form=form: form(*operands, biased), inputs, kernel)
            found.append((outputs, pull_back(cotangent)))
        chex.assert_trees_all_equal_dtypes(*found)
        chex.assert_trees_all_close(*found, rtol=tolerance, atol=tolerance)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("form", "transposed"), [(lambda *operands: product(*operands, True), False), (product_plain, True)]
)
def test_a_kernels_gradient_over_devices_is_not_transposed_on_cpus(form, transposed):
    mesh = make_mesh()
    kernel = jax.ShapeDtypeStruct((48, 32), jnp.float32, sharding=replicated(mesh))
    inputs = jax.ShapeDtypeStruct((8 * mesh.size, 48), jnp.float32, sharding=batch_sharding(mesh))

    def gradient(kernel, inputs):
        return jax.grad(lambda kernel: jnp.square(form(inputs, kernel)).sum())(kernel)

    program = jax.jit(gradient, out_shardings=replicated(mesh)).lower(kernel, inputs).compile().as_text()
    products = re.findall(r"= f32\[(\d+,\d+)\]\S* dot\(", program)
    assert ("32,48" in products) == transposed, f"a kernel [48, 32], and products {products}"
    assert ("48,32" in products) != transposed, f"a kernel [48, 32], and products {products}"
