"""Stacks of convolutions in evaluation: each part of a batch goes through all modules by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.ops import parts

PARTS, STACK = 4, {"stem_widths": (8, 16), "stem_strides": (2, 2)}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 16, 3)), jnp.float32)
STACKS = ["conv", "conv1x1", "earlyconv", "stce", "max_pool", "hcformer"]


@pytest.fixture(params=STACKS)
def stacked(request, monkeypatch):
    """(an embedding, its variables with statistics unlike those of a new one) on a device that computes in parts."""
    embedding = EMBEDDINGS[request.param](width=16, **STACK)
    variables = embedding.init(jax.random.key(0), IMAGES[:1], train=False)
    _, updates = embedding.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    monkeypatch.setattr(parts, "number_of_parts", lambda shape: 1 if parts._whole.value else PARTS)
    return embedding, {**variables, **updates}


def applied(embedding, variables, **options):
    """(what an embedding gives, how often arrays are joined for it)."""
    traced = jax.jit(lambda variables, images: embedding.apply(variables, images, **options)).trace(variables, IMAGES)
    joined = str(traced.jaxpr).count(" concatenate[")
    return traced.lower().compile()(variables, IMAGES), joined


def test_parts_go_through_all_modules_and_are_joined_once(stacked):
    embedding, variables = stacked
    tokens, joined = applied(embedding, variables, train=False)
    with parts.whole_batches():
        expected, joined_in_whole = applied(embedding, variables, train=False)
    others = {"hcformer": 1}.get(embedding_name(embedding), 0)  # its coarser module is none of the stack
    assert joined - joined_in_whole == 1 + others, "parts are joined after each module, or never"
    chex.assert_trees_all_close(tokens.values, expected.values, atol=1e-5, rtol=1e-5)
    assert tokens.grid == expected.grid


def test_in_training_statistics_are_of_the_whole_batch(stacked):
    embedding, variables = stacked
    options = {"train": True, "mutable": ["batch_stats"]}
    found, _ = applied(embedding, variables, **options)
    with parts.whole_batches():
        expected, _ = applied(embedding, variables, **options)
    chex.assert_trees_all_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


def test_who_looks_at_modules_sees_the_whole_batch(stacked):
    embedding, variables = stacked
    looked = {"capture_intermediates": True, "mutable": ["intermediates"]}
    (_, seen), _ = applied(embedding, variables, train=False, **looked)
    (output,) = seen["intermediates"]["module_1"]["__call__"]
    assert output.shape == (8, 8, 8, 8)


def embedding_name(embedding):
    return next(name for name in STACKS if type(embedding) is EMBEDDINGS[name])
