"""Fixed patterns against the published code's, and against what masks in attention give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.models.bodies.vit import Block
from stce_jax.models.factory import create_model
from stce_jax.models.reductions.pattern import DISTANCES, Pattern, distance_map, kept_places, nearest_threshold
from stce_jax.models.tokens import Tokens


@pytest.mark.parametrize("name", ["heuristic_l1_contiguous", "heuristic_l2_notcontig"])
def test_patterns_equal_the_golden_masks(name):
    arrays = golden("reductions", name)
    module = Pattern(
        blocks=tuple(map(int, arrays["out_reduction_loc"])),
        keep_rate=float(arrays["cfg_keep_rate"]),
        distance=str(arrays["cfg_pattern"]),
        contiguous="notcontig" not in name,
        min_radius=float(arrays["cfg_min_radius"]),
    )
    module.check()
    np.testing.assert_allclose(distance_map((8, 8), module.distance), arrays["out_distances"], atol=1e-8)
    places = module._places((8, 8), 2)
    for stage, mask in enumerate(arrays["out_masks"]):
        np.testing.assert_array_equal(places[stage], np.flatnonzero(mask), f"stage {stage}")
    assert module.counts((8, 8), 2) == [int(mask.sum()) for mask in arrays["out_masks"]]


def test_coordinates_of_odd_sides_are_those_of_the_published_code():
    expected = [4, 17 / 6, 5 / 3, 1 / 2, 2 / 3, 11 / 6, 3]
    np.testing.assert_allclose(distance_map((7, 7), "linf").min(axis=0), np.maximum(expected, 1 / 2), atol=1e-8)
    np.testing.assert_allclose(distance_map((7, 8), "l1")[:, 3], np.add(expected, 4 / 7), atol=1e-8)
    assert distance_map((7, 5), "linf").shape == (7, 5)


@settings(max_examples=30)
@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.sampled_from(DISTANCES),
    st.floats(0.05, 1.0),
    st.booleans(),
)
def test_later_stages_keep_less_and_whole_rings(grid, distance, rate, contiguous):
    module = Pattern(blocks=(1, 2, 3), keep_rate=rate, distance=distance, contiguous=contiguous)
    distances = distance_map(grid, distance)
    try:
        places = module._places(grid, 3)
    except ConfigError as error:
        assert "leaves none of" in str(error)
        return
    for before, after in zip([np.arange(distances.size), *places], places, strict=False):
        assert set(after) <= set(before) and len(after)
        inside = distances.ravel()[after]
        assert set(np.flatnonzero(distances <= inside.max())) == set(after), "a ring is cut"
    if not contiguous:
        sizes = [len(kept_places(distances, [each])[0]) for each in np.unique(distances)]
        aims = [int(rate ** (stage + 1) * distances.size) for stage in range(3)]
        for kept, aim in zip(places, aims, strict=True):
            assert abs(len(kept) - aim) == min(abs(size - aim) for size in sizes)
            assert len(kept) == (distances <= nearest_threshold(distances, aim)).sum()


@pytest.mark.slow
def test_dropping_gives_what_masks_in_attention_give():
    """For the tokens that remain, whatever the others hold."""
    rng = np.random.default_rng(0)
    block = Block(heads=2, mlp_dim=12)
    values = jnp.asarray(rng.normal(size=(2, 17, 8)), jnp.float32)
    module = Pattern(blocks=(1,), keep_rate=0.5)
    (places,) = module._places((4, 4), 1)
    mask = np.zeros((2, 17), bool)
    mask[:, [0, *(places + 1)]] = True
    variables = jax.jit(lambda: block.init(jax.random.key(0), Tokens(values, leading=1), None, None, False))()

    @jax.jit
    def run(values):
        tokens = Tokens(values, grid=(4, 4), leading=1, initial_grid=(4, 4))
        masked = block.apply(variables, tokens.replace(mask=jnp.asarray(mask)), None, None, False)
        reduced, left = module.apply({}, tokens, {}, train=False, mutable=["intermediates"])
        return masked.values, block.apply(variables, reduced, None, None, False), left

    masked, dropped, left = run(values)
    np.testing.assert_allclose(dropped.values, masked[:, [0, *(places + 1)]], atol=1e-6)
    other, _, _ = run(values.at[:, 1].set(7.0))  # a corner
    np.testing.assert_allclose(other[:, [0, *(places + 1)]], masked[:, [0, *(places + 1)]], atol=1e-6)
    (assignment,) = left["intermediates"]["assignment"]
    np.testing.assert_array_equal(np.flatnonzero(assignment[0] >= 0), places)
    np.testing.assert_array_equal(assignment[0][places], np.arange(len(places)))


def test_a_model_of_any_grid_keeps_the_places_of_each_stage():
    options = {"width": 8, "depth": 3, "heads": 2, "mlp_dim": 8, "patch_size": 4, "pooling": "mean", "num_classes": 2}
    model = create_model("vit_ti_patch", image_size=(16, 24), reduction="pattern", blocks=(1, 2), **options)
    assert model.token_counts(16, 24) == [24, *model.reduction.counts((4, 6), 2)]
    images = jax.ShapeDtypeStruct((2, 16, 24, 3), jnp.float32)

    def run(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return model.apply(variables, images, train=False, method="tokens", mutable=["intermediates"])

    tokens, left = jax.eval_shape(run, images)
    assert tokens.shape == (2, model.token_counts(16, 24)[-1], 8)
    shapes = [left["intermediates"][f"blocks_{index}"]["reduction"]["assignment"][0].shape for index in (0, 1)]
    assert shapes == [(2, 24), (2, model.token_counts(16, 24)[1])]


def test_wrong_options_are_one_line():
    for wrong, message in [
        ({"keep_rate": 2.0}, "keep_rate is 2.0"),
        ({"distance": "l3"}, "distance is 'l3'; it must be one of l1, l2, linf"),
        ({"min_radius": -1.0}, "min_radius is -1.0"),
        ({"contiguous": True}, "give all from 3 to 9"),
        ({"contiguous": True, "blocks": None}, "name the blocks"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Pattern(**wrong).check()
    with pytest.raises(ConfigError, match="min_radius 0 leaves none of 16 tokens at stage 7 of 8"):
        Pattern(blocks=tuple(range(1, 9)), contiguous=True, min_radius=0).counts((4, 4), 8)
