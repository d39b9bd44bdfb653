"""Token reductions inside the vision transformer: where they act, what they are given, what follows."""

import dataclasses
import functools
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import initial

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model, model_options
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.models.tokens import Tokens

IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
SMALL = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 24, "patch_size": 4}


class EverySecond(nn.Module):
    """Keeps the leading tokens and every second of the others."""

    blocks: tuple[int, ...] | None = None
    step: int = 2

    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False

    def __call__(self, tokens, given, *, train):
        assert not given
        kept = jnp.concatenate([tokens[:, : tokens.leading], tokens.image_values()[:, :: self.step]], axis=1)
        return Tokens(kept, leading=tokens.leading)


class Masked(EverySecond):
    """The same by a mask."""

    def __call__(self, tokens, given, *, train):
        kept = np.arange(tokens.shape[1] - tokens.leading) % self.step == 0
        kept = np.concatenate([np.ones(tokens.leading, bool), kept])
        return dataclasses.replace(tokens, mask=jnp.broadcast_to(kept, tokens.shape[:2]))


class Watching(EverySecond):
    """Takes what attention gives and changes nothing."""

    needs: ClassVar[tuple[str, ...]] = ("key", "weights")
    needs_class_token: ClassVar[bool] = True

    def __call__(self, tokens, given, *, train):
        assert set(given) == {"key", "weights"}
        chex.assert_shape(given["key"], (2, 17, 2, 8))
        if not isinstance(given["weights"], jax.core.Tracer):
            np.testing.assert_allclose(given["weights"].sum(axis=-1), np.ones((2, 2, 17)), rtol=1e-5)
        return tokens


class Doubled(EverySecond):
    """Merges every token with a copy of itself: half of what `Repeated` gives."""

    def __call__(self, tokens, given, *, train):
        return dataclasses.replace(tokens, sizes=jnp.full(tokens.shape[:2], 2.0))


class Repeated(EverySecond):
    def __call__(self, tokens, given, *, train):
        return Tokens(jnp.concatenate([tokens.values, tokens.values], axis=1), leading=tokens.leading)


@pytest.fixture(autouse=True)
def table(monkeypatch):
    for module in (EverySecond, Masked, Watching, Doubled, Repeated):
        monkeypatch.setitem(REDUCTIONS, module.__name__.lower(), module)


def outputs(reduction, compiled=True, **options):
    model = create_model("vit_ti_patch", num_classes=5, image_size=16, reduction=reduction, **SMALL | options)
    variables = initial(model, IMAGES, train=False)
    run = functools.partial(model.apply, train=False)
    return model, variables, (jax.jit(run) if compiled else run)(variables, IMAGES)


def tokens_of(model, variables):
    """The shapes of a model's tokens."""
    return jax.eval_shape(lambda v: model.apply(v, IMAGES, train=False, method="tokens"), variables)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_reduction_acts_in_its_blocks_and_has_no_parameters(pooling):
    model, variables, logits = outputs("everysecond", blocks=(0,), pooling=pooling)
    leading = int(pooling == "class")
    tokens = tokens_of(model, variables)
    assert tokens.shape == (2, leading + 8, 16) and tokens.leading == leading and tokens.grid is None
    _, plain, unreduced = outputs(None, pooling=pooling)
    chex.assert_trees_all_equal(variables, plain)
    assert np.isfinite(logits).all() and np.abs(logits - unreduced).max() > 1e-6
    everywhere = tokens_of(outputs("everysecond", pooling=pooling)[0], variables)
    assert everywhere.shape == (2, leading + 2, 16)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("remat", [False, True])
def test_masked_tokens_count_nowhere(pooling, remat):
    logits = [outputs(name, blocks=(0,), pooling=pooling, remat=remat)[2] for name in ("everysecond", "masked")]
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.slow
def test_a_token_that_stands_for_two_counts_twice():
    logits = [outputs(name, blocks=(0,), pooling="mean")[2] for name in ("doubled", "repeated")]
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.slow
def test_a_reduction_is_given_what_it_needs():
    _, _, logits = outputs("watching", compiled=False)
    np.testing.assert_allclose(logits, outputs(None)[2], atol=1e-5)


def test_what_cannot_work_is_refused_with_a_reason():
    with pytest.raises(ConfigError, match="scan_layers needs blocks of one shape"):
        outputs("everysecond", scan_layers=True)
    with pytest.raises(ConfigError, match="class token"):
        outputs("watching", pooling="mean")
    with pytest.raises(ConfigError, match="blocks is 3; it must be a whole number between 0 and 2"):
        outputs("everysecond", blocks=(1, 3))
    with pytest.raises(ConfigError, match="there is no reduction 'evit3'"):
        outputs("evit3")


def test_a_reductions_options_are_options_of_the_model():
    assert model_options("vit_ti_patch", reduction="everysecond", step=4)["step"] == 4
    with pytest.raises(ConfigError, match="has no option 'step'"):
        model_options("vit_ti_patch", step=4)
