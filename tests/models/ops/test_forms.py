"""Forms for GPUs: whoever chooses them gets the same model; nobody else gets them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.models.ops import attention, convolution, fused
from stce_jax.models.ops.forms import GPU_FORMS, chosen, gpu_forms
from stce_jax.models.ops.kernels import rows

OPTIONS = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "num_classes": 3, "image_size": 20}
STEM = {"stem_widths": (8, 12), "stem_strides": (2, 1), "cell": 2}
TRITON = {"residual_norm": 4, "bias_gelu": 4}  # kernels, forward and backward, of two such layers
IMAGES = jax.random.normal(jax.random.key(0), (3, 20, 20, 3))


@pytest.fixture
def kernels_here(monkeypatch):
    """What CUDA devices would compute, with kernels in Pallas's interpreter."""

    def by_cuda(*operands, default, cuda=None, cpu=None):
        return (cuda or default)(*operands)

    def interpreted(kernel, operands, results, grid, *, warps, interpret):
        del interpret
        return launch(kernel, operands, results, grid, warps=warps, interpret=True)

    launch = rows.launch
    monkeypatch.setattr(rows, "launch", interpreted)
    monkeypatch.setattr(jax.lax, "platform_dependent", by_cuda)


def make(dtype="float32"):
    model = create_model("vit_ti_stce", **OPTIONS, **STEM, dtype=dtype)
    return model, model.init(jax.random.key(1), IMAGES, train=False)


def gradients(model, variables):
    """(logits, BatchNorm's statistics, gradients) of a training step."""

    def loss(params):
        logits, state = model.apply(
            variables | {"params": params},
            IMAGES,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        return jnp.sin(logits).sum(), (logits, state)

    grads, (logits, state) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, state, grads


@pytest.mark.parametrize("form", GPU_FORMS)
def test_a_form_changes_nothing_but_roundings(form, kernels_here):
    model, variables = make()
    expected = gradients(model, variables)
    with gpu_forms(form):
        chex.assert_trees_all_equal(make()[1], variables)
        given = gradients(model, variables)
    for ours, theirs in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", GPU_FORMS)
def test_forms_reach_the_training_step_for_cuda(form, dtype):
    model, variables = make(dtype)

    def step(variables):
        return gradients(model, variables)

    def program():
        return jax.jit(step).trace(variables).lower(lowering_platforms=("cuda",)).as_text()

    plain = program()
    with gpu_forms(form):
        chosen_form = program()
    assert "xla.gpu.triton" not in plain, "a kernel that nobody chose"
    assert chosen_form != plain, f"{form} changes nothing of a training step"
    assert chosen_form.count("xla.gpu.triton") == TRITON.get(form, 0)


@pytest.fixture
def fused_attention(monkeypatch):
    """cuDNN's attention on any device: by products, with whatever comes to mind where keys are hidden."""

    def plain(query, key, value, count):
        return attention.attention_plain(query, key[:, :count], value[:, :count])

    attend = jax.custom_vjp(plain, nondiff_argnums=(3,))

    def forward(query, key, value, count):
        return attend(query, key, value, count), (query, key, value)

    def backward(count, saved, cotangent):
        gradients = jax.vjp(lambda *operands: plain(*operands, count), *saved)[1](cotangent)
        hidden = (jnp.arange(cotangent.shape[1]) >= count)[:, None, None]
        return gradients[0], *(jnp.where(hidden, jnp.nan, own) for own in gradients[1:])

    attend.defvjp(forward, backward)
    monkeypatch.setattr(fused, "has_fused_kernel", lambda width, dtype: True)
    monkeypatch.setattr(fused, "_by_cudnn", attend)


def test_padded_attention_needs_nothing_of_what_is_hidden(fused_attention, kernels_here):
    model, variables = make()
    assert model.apply(variables, IMAGES, train=False).shape == (3, 3) and (100 + 1) % 8  # there is something to pad
    expected = gradients(model, variables)
    with gpu_forms("padded_attention"):
        given = gradients(model, variables)
    for ours, theirs in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("switch", [True, False])
def test_padded_attention_calls_cudnn_unless_it_is_switched_off(monkeypatch, switch):
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)  # there is none here
    monkeypatch.setattr(fused, "has_fused_kernel", lambda width, dtype: True)
    operands = [jnp.ones((2, 8, 2, 16), jnp.bfloat16)] * 3

    def number(*operands):
        return fused.padded_attention(*operands, 5).astype(jnp.float32).sum()

    with attention.fused_kernel(switch):
        text = jax.jit(jax.grad(number)).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    assert ("__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text) == switch


def test_kernels_become_the_plain_form_over_a_mapped_axis_and_within_shard_map():
    rows, bias = jnp.ones((8, 4, 6)), jnp.ones(6)
    expected = fused.bias_gelu_plain(rows.reshape(-1, 6), bias).reshape(rows.shape)
    np.testing.assert_array_equal(jax.jit(jax.vmap(fused.bias_gelu, (0, None)))(rows, bias), expected)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spec = PartitionSpec("data")
    inside = jax.shard_map(
        lambda rows, bias: fused.bias_gelu(rows[0], bias)[None], mesh=mesh, in_specs=(spec, None), out_specs=spec
    )
    np.testing.assert_array_equal(jax.jit(inside)(rows, bias), expected)


def test_a_residual_of_another_dtype_is_promoted(kernels_here):
    inputs, branch = jnp.ones((5, 8), jnp.bfloat16), jnp.full((5, 8), 0.001)
    total, normed = fused.residual_layer_norm(inputs, branch, jnp.ones(8), jnp.zeros(8), jnp.float32, 1e-6)
    assert total.dtype == normed.dtype == jnp.float32
    np.testing.assert_allclose(total, 1.001, rtol=1e-6)


@pytest.mark.parametrize("names", [("bias_gleu",), ("bias_gelu", "gelu")])
def test_a_form_that_is_not_there_is_refused(names):
    with pytest.raises(ConfigError, match="there are residual_norm, bias_gelu"), gpu_forms(*names):
        pass


@pytest.mark.parametrize("form", ["residual_norm", "bias_gelu"])
def test_kernels_refuse_other_derivatives(form):
    model, variables = make()
    with gpu_forms(form), pytest.raises(TypeError, match="reverse mode alone"):
        jax.jvp(lambda images: model.apply(variables, images, train=False), (IMAGES,), (IMAGES,))


def test_nothing_is_chosen_unless_somebody_does():
    assert not any(chosen(form) for form in GPU_FORMS)


@pytest.mark.parametrize("size", [(8, 8), (9, 10), (11, 7), (6, 13)])
@pytest.mark.parametrize("blocks", ["_by_blocks", "_by_larger_blocks"])
def test_blocks_of_pixels_are_the_convolution(blocks, size):
    rng = np.random.default_rng(0)
    inputs, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, *size, 3), (3, 3, 3, 5)))
    np.testing.assert_allclose(
        getattr(convolution, blocks)(inputs, kernel), convolution.halving_convolution_plain(inputs, kernel), atol=1e-5
    )
