"""Modules that lack something, or give tokens that the model cannot use, are refused in one line."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import pytest
from flax import linen as nn

from stce_jax.errors import ConfigError
from stce_jax.models.bodies import BODIES, VisionTransformer
from stce_jax.models.embeddings import EMBEDDINGS, PatchEmbed
from stce_jax.models.factory import create_model, list_models
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.models.tokens import Tokens

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}


class Embedding(PatchEmbed):
    """Patches of 4x4 pixels whatever the body, as a base for embeddings that go wrong."""

    patch_size: int = 4

    @staticmethod
    def options_for(width, stride):
        return {}


class NoPlaces(Embedding):
    feature_places = None


class NoWidth(nn.Module):
    dtype: jnp.dtype = jnp.float32

    def __call__(self, images, *, train): ...

    def grid(self, height, width): ...

    def feature_places(self): ...


class SameOption(Embedding):
    depth: int = 3


class ArrayAlone(Embedding):
    def __call__(self, images, *, train):
        return jnp.zeros((len(images), 16, self.width))


class TooWide(Embedding):
    def __call__(self, images, *, train):
        return Tokens(jnp.zeros((len(images), 16, self.width + 1)), grid=(4, 4))


class WrongGrid(Embedding):
    def __call__(self, images, *, train):
        return Tokens(jnp.zeros((len(images), 16, self.width)), grid=(4, 5))


class Reduction(nn.Module):
    """Changes nothing, as a base for reductions that go wrong."""

    blocks: tuple[int, ...] | None = None
    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False

    def __call__(self, tokens, given, *, train):
        return tokens


class NeedsKeys(Reduction):
    needs: ClassVar[tuple[str, ...]] = ("keys",)


class NoBlocks(nn.Module):
    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False

    def __call__(self, tokens, given, *, train): ...


class KeepsTheGrid(Reduction):
    def __call__(self, tokens, given, *, train):
        return dataclasses.replace(tokens, values=tokens[:, :5])


class DropsTheClassToken(Reduction):
    def __call__(self, tokens, given, *, train):
        return Tokens(tokens[:, 1:])


class BadOption(Reduction):
    keep: float = 0.5

    def check(self):
        raise ConfigError(f"keep is {self.keep}; it must be below 0.3")


class Body(nn.Module):
    embedding: nn.Module
    num_classes: int
    image_size: tuple[int, int] = (16, 16)
    dtype: jnp.dtype = jnp.float32

    def __call__(self, images, *, train):
        return self.embedding(images, train=train).pooled_mean()

    def grid(self, height, width):
        return self.embedding.grid(height, width)

    features = tokens = unshaped_options = fit_weights = __call__


class NoFeatures(Body):
    features = None


@pytest.mark.parametrize(
    "kind, module, named",
    [
        ("embedding", NoPlaces, "has no method 'feature_places'"),
        ("embedding", NoWidth, "has no field 'width'"),
        ("embedding", SameOption, "both have an option 'depth'"),
        ("embedding", ArrayAlone, "must return Tokens"),
        ("embedding", TooWide, "gives tokens (1, 16, 9); the model needs (1, 16, 8)"),
        ("embedding", WrongGrid, "16 tokens of the image in a grid of 4x5"),
        ("reduction", NeedsKeys, "needs 'keys'; attention can give query, key, value, weights"),
        ("reduction", NoBlocks, "has no field 'blocks'"),
        ("reduction", KeepsTheGrid, "4 tokens of the image in a grid of 4x4"),
        ("reduction", DropsTheClassToken, "gives 0 leading tokens; the model needs 1"),
        ("reduction", BadOption, "keep is 0.5; it must be below 0.3"),
        ("body", NoFeatures, "has no method 'features'"),
    ],
)
def test_what_is_missing_or_wrong_is_named(monkeypatch, kind, module, named):
    table = {"body": BODIES, "embedding": EMBEDDINGS, "reduction": REDUCTIONS}[kind]
    monkeypatch.setitem(table, "own", module)
    options = {} if kind == "body" else SMALL
    with pytest.raises(ConfigError) as error:
        model = create_model("vit_ti_patch", num_classes=3, image_size=16, **{kind: "own"}, **options | patch(kind))
        model.init({"params": key()}, jnp.zeros((1, 16, 16, 3)), train=False)
    message = str(error.value)
    assert named in message and "\n" not in message


def patch(kind):
    return {} if kind == "embedding" else {"patch_size": 4}


def key():
    import jax

    return jax.random.key(0)


def test_a_body_without_that_field_takes_no_reduction(monkeypatch):
    monkeypatch.setitem(BODIES, "own", Body)
    monkeypatch.setitem(REDUCTIONS, "none", Reduction)
    with pytest.raises(ConfigError, match="the body 'own' takes no token reduction"):
        create_model("vit_ti_patch", num_classes=3, image_size=16, body="own", reduction="none")


def test_a_body_without_a_width_leaves_embeddings_theirs(monkeypatch):
    monkeypatch.setitem(BODIES, "own", Body)
    assert create_model("vit_ti_conv", num_classes=3, image_size=16, body="own").embedding.stem_widths[-1] == 384


def test_a_body_with_sizes_is_found_by_name(monkeypatch):
    class Sized(VisionTransformer):
        SIZES: ClassVar = {"xs": {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}}

    monkeypatch.setitem(BODIES, "sized", Sized)
    assert "sized_xs_stce" in list_models("sized_*")
    assert create_model("sized_xs_stce", num_classes=3).width == 8
