"""Operations take a batch whose size is not known yet, as an export for any number of images needs."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from stce_jax.models.ops.attention import attention_weights, dot_product_attention
from stce_jax.models.ops.batch_norms import gelu_batch_norm
from stce_jax.models.ops.convolution import halving_convolution
from stce_jax.models.ops.depthwise import depthwise_convolution, depthwise_residual
from stce_jax.models.ops.supertoken import associate, cluster_super_tokens, pool_cells


def associated(features):
    association = associate(features, 2)
    return association.affinity(), association.scatter(association.aggregate(features))


def attended(values, **options):
    return attention_weights(values, values, **options), dot_product_attention(values, values, values, **options)


OPERATIONS = {
    "cluster": (lambda x: cluster_super_tokens(x, 2), (5, 6, 4)),
    "associate": (associated, (5, 6, 4)),
    "pool": (lambda x: pool_cells(x, 2), (5, 6, 4)),
    "halving_convolution": (lambda x: halving_convolution(x, jnp.zeros((3, 3, 3, 4))), (7, 6, 3)),
    "depthwise_convolution": (lambda x: depthwise_convolution(x, jnp.zeros((3, 3, 1, 4)), 1), (5, 6, 4)),
    "halving_depthwise": (lambda x: depthwise_convolution(x, jnp.zeros((3, 3, 1, 4)), 2), (5, 6, 4)),
    "depthwise_residual": (lambda x: depthwise_residual(x, jnp.zeros((3, 3, 1, 4)), jnp.zeros(4)), (5, 6, 4)),
    "gelu_batch_norm": (lambda x: gelu_batch_norm(x, jnp.ones(4), jnp.ones(4), jnp.float32), (5, 6, 4)),
    "attention": (attended, (5, 2, 4)),
    "attention_with_mask": (lambda x: attended(x, mask=x[:, :, 0, 0] > 0), (5, 2, 4)),
    "attention_with_bias": (lambda x: attended(x, bias=jnp.zeros((2, 5, 5))), (5, 2, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_batch_of_symbolic_size(name):
    function, shape = OPERATIONS[name]
    (batch,) = export.symbolic_shape("b")
    exported = export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    )
    for count in (1, 3):
        found = exported.call(jnp.ones((count, *shape)))
        expected = function(jnp.ones((count, *shape)))
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
