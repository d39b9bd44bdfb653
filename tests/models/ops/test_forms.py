"""Forms for GPUs: whoever chooses them gets the same model; nobody else gets them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.factory import create_model
from stce_jax.models.ops import convolution
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
    with gpu_forms((form,)):
        chex.assert_trees_all_equal_shapes(make()[1], variables)
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
    with gpu_forms((form,)):
        chosen_form = program()
    assert "xla.gpu.triton" not in plain, "a kernel that nobody chose"
    assert chosen_form != plain, f"{form} changes nothing of a training step"
    assert chosen_form.count("xla.gpu.triton") == TRITON.get(form, 0)


@pytest.mark.parametrize("form", ["residual_norm", "bias_gelu"])
def test_kernels_refuse_other_derivatives(form):
    model, variables = make()
    with gpu_forms((form,)), pytest.raises(TypeError, match="reverse mode alone"):
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
