"""What became of reduced tokens: composed as a loop over places would, drawn as it is sown."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.analysis.drawing import pictures, reductions
from stce_jax.errors import ConfigError
from stce_jax.models.embeddings import PatchEmbed
from stce_jax.models.factory import create_model
from stce_jax.training.state import abstract_variables

SMALL = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 16, "patch_size": 4, "num_classes": 3}


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_stages_compose_place_by_place(seed, counts):
    rng = np.random.default_rng(seed)
    stages = [rng.integers(-1, after, before) for before, after in itertools.pairwise(counts)]
    found = reductions.compose(stages)
    for place in range(counts[0]):
        token = place
        for stage, places in zip(stages, found, strict=True):
            token = int(stage[token]) if token >= 0 else -1
            assert places[place] == token, f"place {place}"
    for places in found:
        expected = [0 if token < 0 else list(places).count(token) for token in places]
        assert reductions.merged(places).tolist() == expected


def test_the_sheet_darkens_what_is_dropped_and_outlines_what_is_merged():
    """2x2 places of 4 pixels; the first stage merges the upper two, the second drops the lower left one."""
    side, tile = 8, 160
    image = np.random.default_rng(0).integers(0, 256, (tile, tile, 3), np.uint8)
    stages = [np.array([0, 0, 1, 2]), np.array([0, -1, 1])]
    sheet = np.asarray(reductions.reduction_sheet(image, stages, ["block 1", "block 3"], PatchEmbed(16, 4), side))
    half, line = tile // 2, 18

    def drawn(row, column):
        left, top = 4 + column * (tile + 4), 4 + row * (tile + line)
        return sheet[top : top + tile, left : left + tile]

    np.testing.assert_array_equal(drawn(0, 0), image)
    groups = np.array([[1, 1], [0, 0]]).repeat(half, axis=0).repeat(half, axis=1)
    np.testing.assert_array_equal(drawn(0, 1), pictures.draw_boundaries(image, groups))
    upper = np.round(image[:half].reshape(-1, 3).mean(axis=0))
    for column in (1, 2):
        assert (drawn(1, column)[:half] == upper).all(), "merged places are not of one colour"
        right = np.round(image[half:, half:].reshape(-1, 3).mean(axis=0))
        assert (drawn(1, column)[half:, half:] == right).all()
    dark = np.round(reductions.DIMMED * image[half:, :half])
    np.testing.assert_array_equal(drawn(1, 2)[half:, :half], dark)
    np.testing.assert_array_equal(drawn(0, 2)[half + 1 :, : half - 1], dark[1:, :-1])
    np.testing.assert_array_equal(drawn(0, 2)[half + 1 :, half + 1 :], image[half + 1 :, half + 1 :])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"reduction": "evit", "blocks": (1, 2)}, ["block 1", "block 2"]),
        ({"reduction": "pattern", "blocks": (1, 2), "pooling": "mean"}, ["before block 1", "before block 2"]),
        ({"reduction": "sit", "blocks": (2,), "pooling": "mean"}, ["before block 2"]),
    ],
)
def test_read_out_of_models_of_any_image_size(options, names):
    """Also of larger images than the model's; for each stage an assignment of the tokens that it meets."""
    model = create_model("vit_ti_patch", image_size=16, **SMALL, **options)
    assert reductions.stage_names(model, 32) == names
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    variables = jax.tree.map(draw, abstract_variables(model, 16))
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    stages, values = jax.jit(lambda variables: reductions.assignments(model, variables, images))(variables)
    places = reductions.compose(stages)
    assert len(places) == len(names) and all(each.shape == (2, 64) for each in places)
    left = values.shape[1] - (model.pooling == "class")
    assert places[-1].max() < left
    if options["reduction"] != "sit":
        assert all(len(np.unique(row[row >= 0])) == left for row in places[-1])


def test_a_model_that_reduces_nothing_is_refused():
    for options in ({}, {"reduction": "topk", "blocks": (1,), "keep_rate": 1.0}):
        model = create_model("vit_ti_patch", image_size=16, **SMALL, **options)
        assert not reductions.is_drawable(model, 16)
        with pytest.raises(ConfigError, match="no block of the model reduces its tokens"):
            reductions.stage_names(model, 16)
