"""Rotary positions: against complex numbers, and what makes them relative."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_ingredients
import pytest

from stce_jax.models.ops import rotary


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_axial_frequencies_and_places():
    np.testing.assert_allclose(rotary.axial_frequencies(16)[:, 0], numpy_ingredients.axial_frequencies(16), rtol=1e-6)
    places = rotary.grid_places((2, 3))
    np.testing.assert_array_equal(places[0], [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)])


def test_mixed_frequencies_begin_as_turned_axial_ones():
    found = np.asarray(rotary.mixed_frequencies(jax.random.key(0), (2, 5, 8)))
    assert found.shape == (2, 5, 8) and found.dtype == np.float32
    magnitude = 10.0 ** (-np.arange(0, 16, 4) / 16)
    np.testing.assert_allclose(np.hypot(*found), np.broadcast_to(np.tile(magnitude, 2), (5, 8)), rtol=1e-5)
    angle = np.arctan2(found[1], found[0])
    turn = np.exp(1j * (angle[:, 4:] - angle[:, :4]))  # the second half stands at right angles to the first
    np.testing.assert_allclose(turn, np.full((5, 4), 1j), atol=1e-5)
    assert len(np.unique(angle[:, 0].round(4))) == 5, "heads share a direction"


@pytest.mark.parametrize("heads", [1, 3])
def test_a_rotation_is_a_product_of_complex_numbers(heads):
    values, frequencies = draw(2, 6, 3, 8), draw(2, heads, 4, seed=1)
    angles = rotary.rotation_angles(rotary.grid_places((2, 3)), frequencies)
    assert angles.shape == (1, 6, heads, 4)
    found = rotary.rotate(values, angles)
    places = [divmod(token, 3) for token in range(6)]
    for image in range(2):
        for head in range(3):
            expected = numpy_ingredients.turn(values[image, :, head], places, frequencies[:, head % heads])
            np.testing.assert_allclose(found[image, :, head], expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, 0], values[:, 0])  # the place (0, 0) is not turned


def test_logits_depend_on_the_difference_of_places_alone():
    query, key, frequencies = draw(1, 1, 1, 8), draw(1, 1, 1, 8, seed=1), draw(2, 1, 4, seed=2)

    def logit(query_place, key_place):
        turned = [
            rotary.rotate(values, rotary.rotation_angles(np.array([[place]], np.float32), frequencies))
            for values, place in ((query, query_place), (key, key_place))
        ]
        return float((turned[0] * turned[1]).sum())

    assert logit((3, 5), (1, 7)) == pytest.approx(logit((12, 5), (10, 7)), abs=1e-4)
    assert logit((3, 5), (1, 7)) != pytest.approx(logit((3, 5), (1, 5)), abs=1e-2)


def test_bfloat16_is_turned_in_float32():
    values = jnp.asarray(draw(1, 6, 2, 8), jnp.bfloat16)
    angles = rotary.rotation_angles(100 * rotary.grid_places((2, 3)), rotary.axial_frequencies(8))
    found, exact = rotary.rotate(values, angles), rotary.rotate(values.astype(jnp.float32), angles)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), exact.astype(jnp.bfloat16).astype(jnp.float32))
