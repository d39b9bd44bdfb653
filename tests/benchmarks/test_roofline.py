"""The hand count of FLOPs and bytes against the traced program, XLA's own count, and figures known beforehand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import roofline_model
from roofline_model import CLASSES, CLUSTERING, Work, model_work, predicted_seconds

from stce_jax.analysis.costs import count_multiply_adds
from stce_jax.models.factory import create_model
from stce_jax.models.ops.supertoken import cluster_super_tokens
from stce_jax.training.state import abstract_variables


def gflop(work):
    return sum(one.flops for one in work) / 1e9


def traced(name, batch=2, image_size=64, **overrides):
    """(function, variables, images) of a model's inference, as shapes."""
    model = create_model(name, num_classes=CLASSES, image_size=image_size, **overrides)
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    return functools.partial(model.apply, train=False), abstract_variables(model, image_size), images


@pytest.mark.parametrize(
    "name, forward, training", [("vit_s_patch", 7.8, 23.4), ("vit_s_conv", 10.9, 32.6), ("vit_s_stce", 8.1, 24.4)]
)
def test_known_figures_of_an_image_at_224(name, forward, training):
    """Of all tokens in the last block, too, as the literature counts."""
    count = functools.partial(model_work, name, batch=1, image_size=224, size=4, scan_layers=True)
    work = {mode: count(training=mode) for mode in (False, True)}
    assert round(gflop(work[False]), 1) == forward
    assert gflop(work[True]) == pytest.approx(training, abs=0.1), "forward and twice that backward"


def test_the_last_block_counts_what_the_class_token_needs():
    count = functools.partial(model_work, "vit_s_patch", batch=1, image_size=224, size=4, training=False)
    others, width, hidden = 196, 384, 1152
    spared = 2 * others * (2 * 197 * width + width * width + 2 * width * hidden)  # products, output layer, MLP
    again = 2 * width * 3 * width  # the class token's own query, with a key and a value that nothing reads
    assert gflop(count(scan_layers=True)) - gflop(count()) == pytest.approx((spared - again) / 1e9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_ti_patch", "vit_ti_conv", "vit_ti_conv1x1", "vit_ti_earlyconv", "vit_ti_stce"])
def test_flops_are_those_of_the_traced_program(name):
    """Exactly, but for the clustering: its products also take in super tokens that a mask then hides."""
    overrides = {"iterations": 0} if name == "vit_ti_stce" else {}
    counted = model_work(name, batch=2, image_size=64, size=4, training=False, **overrides)
    assert gflop(counted) == 2 * count_multiply_adds(*traced(name, **overrides)) / 1e9


@pytest.mark.slow
def test_flops_of_a_training_step_without_convolutions_are_those_of_the_traced_program():
    forward, variables, images = traced("vit_ti_patch")
    counted = model_work("vit_ti_patch", batch=2, image_size=64, size=4, training=True)

    def loss(params, images):
        return forward({"params": params}, images).sum()

    assert gflop(counted) == 2 * count_multiply_adds(jax.grad(loss), variables["params"], images) / 1e9


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_clustering_multiplies_with_a_whole_number_of_super_tokens_a_token_and_at_least_nine(iterations, training):
    features = jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32)

    def cluster(features):
        return cluster_super_tokens(features, 2, iterations)[0].sum()

    executed = 2 * count_multiply_adds(jax.grad(cluster) if training else cluster, features)
    count = functools.partial(roofline_model.clustering, 2, (16, 16), 8, 2, iterations, training=training)
    seen, rest = divmod(executed, sum(one.flops for one in count(seen=1)))
    assert rest == 0, "the executed products are no multiple of the formula's"
    assert seen >= 9
    assert sum(one.flops for one in count()) <= executed


@pytest.mark.slow
def test_xla_counts_the_same_within_a_few_percent():
    """It adds elementwise work and leaves out products with the borders' zeros."""
    function, variables, images = traced("vit_ti_stce", iterations=1, image_size=96)
    theirs = jax.jit(function).lower(variables, images).cost_analysis()["flops"] / 1e9
    ours = gflop(model_work("vit_ti_stce", batch=2, image_size=96, size=4, training=False, iterations=1))
    assert theirs == pytest.approx(ours, rel=0.05)


def test_bytes_of_a_linear_layer_are_its_arrays_and_halve_in_bfloat16():
    count = functools.partial(roofline_model.product, "layer", 10, 6, 5, training=True)
    forward, of_inputs, of_kernel = count(4)
    inputs, kernel = np.zeros((10, 6), np.float32), np.zeros((6, 5), np.float32)
    assert forward.bytes == inputs.nbytes + kernel.nbytes + (inputs @ kernel).nbytes
    assert forward.flops == of_inputs.flops == of_kernel.flops == 2 * 10 * 6 * 5
    assert count(2)[0].bytes - kernel.nbytes == (forward.bytes - kernel.nbytes) / 2, "the parameters stay float32"


def test_clustering_grows_with_tokens_and_attention_with_their_square():
    def by_part(image_size):
        work = model_work("vit_s_stce", batch=1, image_size=image_size, size=4, training=True, pooling="mean")
        parts = {one.part for one in work}
        return {part: sum(one.flops for one in work if one.part == part) for part in parts}

    small, large = by_part(224), by_part(448)
    assert large[CLUSTERING] == 4 * small[CLUSTERING]
    assert large["MLP: linear"] == 4 * small["MLP: linear"]
    assert large["attention: products"] == 16 * small["attention: products"]


def test_a_fused_attention_moves_fewer_bytes_and_computes_its_logits_twice():
    count = functools.partial(model_work, "vit_s_stce", batch=4, image_size=224, size=2)
    for training in (False, True):
        apart, fused = (count(training=training, fused=form) for form in (False, True))
        assert sum(one.bytes for one in fused) < sum(one.bytes for one in apart)
        assert (gflop(fused) > gflop(apart)) == training, "the fifth product is the backward pass's"


def test_predicted_time_is_the_slower_of_both_and_adds_up():
    work = [Work("a", 30, 10), Work("b", 10, 40)]
    assert predicted_seconds(work, peak=10, bandwidth=10) == 3 + 4


def test_the_optimizer_reads_and_writes_each_parameter():
    count = functools.partial(model_work, "vit_ti_patch", batch=1, image_size=64, size=4)
    with_it, without = count(training=True, parameters=1000), count(training=True)
    assert sum(one.bytes for one in with_it) - sum(one.bytes for one in without) == 8 * 4 * 1000
    assert count(training=False, parameters=1000) == count(training=False)
