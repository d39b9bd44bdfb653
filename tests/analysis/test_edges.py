"""Whether borders lie on edges, on pictures whose answer is known."""

import numpy as np
import pytest
from scipy import ndimage

from stce_jax.analysis.edges import agreement, agreements, gradients, near_borders, strongest


def stripes(place, side=16):
    """Images black to the left of a column, white from there on."""
    columns = np.arange(side)[None, None, :, None]
    return np.where(columns < np.reshape(place, (-1, 1, 1, 1)), 0, 255) * np.ones((1, side, 1, 3), np.uint8)


def test_gradients_are_sobels():
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
    grey = images @ np.array([0.299, 0.587, 0.114])
    expected = [np.hypot(*(ndimage.sobel(one, axis, mode="nearest") for axis in (0, 1))) for one in grey]
    np.testing.assert_allclose(gradients(images), expected, rtol=1e-9, atol=1e-9)


def test_edges_are_the_strongest_gradients_and_a_plain_image_has_none():
    edges = strongest(gradients(stripes([8]).astype(np.uint8)))
    assert edges[0, :, 7:9].all() and edges.sum() == 32
    assert not strongest(gradients(np.full((1, 8, 8, 3), 77, np.uint8))).any()


@pytest.mark.parametrize("distance", [0, 1, 3])
def test_near_is_by_the_larger_of_both_directions(distance):
    labels = np.zeros((1, 12, 12), int)
    labels[0, 5:, 4:] = 1
    touching = near_borders(labels, 0)[0]
    assert touching[4, 4:].all() and touching[5, 4:].all() and touching[5:, 3].all() and not touching[4, 3]
    size = 2 * distance + 1
    expected = ndimage.binary_dilation(touching, np.ones((size, size), bool))
    np.testing.assert_array_equal(near_borders(labels, distance)[0], expected)


def test_clusters_on_the_edge_agree_and_those_of_another_image_do_not():
    places = np.array([3, 9, 13])
    images = stripes(places).astype(np.uint8)
    labels = (images[..., 0] > 0).astype(int)
    found = agreements(images, labels, grid=np.zeros((16, 16), int))
    np.testing.assert_array_equal(found["own"], 1)
    np.testing.assert_array_equal(found["other"], 0)
    np.testing.assert_array_equal(found["grid"], 0)
    np.testing.assert_allclose(found["covered"], 2 / 16)


def test_an_image_without_edges_agrees_with_nothing():
    edges = np.zeros((1, 4, 4), bool)
    assert agreement(edges, ~edges).tolist() == [0.0]
