"""Bilinear samples against the definition in NumPy, number by number."""

import jax
import jax.numpy as jnp
import numpy as np

from stce_jax.models.ops.sampling import bilinear_weights, sample_bilinear, sample_differences


def sample(image, position):
    """One sample of [H, W, C] at (y, x) in -1..1: of the four places around it, those that are in the map."""
    place = [(at + 1) / 2 * (side - 1) for at, side in zip(position, image.shape, strict=False)]
    total = np.zeros(image.shape[2])
    for y in (np.floor(place[0]), np.floor(place[0]) + 1):
        for x in (np.floor(place[1]), np.floor(place[1]) + 1):
            if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                total += (1 - abs(place[0] - y)) * (1 - abs(place[1] - x)) * image[int(y), int(x)]
    return total


def test_samples_equal_the_definition_within_and_beyond_the_map():
    rng = np.random.default_rng(0)
    values, positions = rng.normal(size=(2, 4, 5, 3)), rng.uniform(-1.6, 1.6, size=(2, 40, 2))
    positions[:, 0], positions[:, 1], positions[:, 2] = -1.0, 1.0, (1.0, -1.0)  # places of the map itself
    expected = [[sample(image, at) for at in places] for image, places in zip(values, positions, strict=True)]
    with jax.enable_x64(True):
        found = sample_bilinear(jnp.asarray(values), jnp.asarray(positions))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    single = sample_bilinear(jnp.asarray(values, jnp.float32), jnp.asarray(positions, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)
    assert sample_bilinear(jnp.asarray(values, jnp.bfloat16), jnp.asarray(positions, jnp.float32)).dtype == jnp.bfloat16


def test_the_gradient_of_positions_is_the_difference_of_the_neighbours():
    row = np.array([1.0, 3.0, 7.0, 4.0])
    positions = jnp.asarray([-1.0, -0.5, 1 / 3, 0.9, 1.0])  # at 0, 0.75, 2, 2.85 and 3 of the row
    gradient = jax.grad(lambda at: (bilinear_weights(at, 4) * row[None]).sum())(positions)
    np.testing.assert_allclose(gradient, 1.5 * np.array([2.0, 2.0, -3.0, -3.0, -4.0]), atol=1e-4)


def test_samples_of_differences_equal_samples_one_by_one():
    rng = np.random.default_rng(1)
    tables, positions = rng.normal(size=(2, 3, 5, 7)), rng.uniform(-1.5, 1.5, size=(2, 2, 6, 2))
    rows, columns = np.linspace(-1, 1, 3), np.linspace(-0.9, 0.9, 4)
    with jax.enable_x64(True):
        found = np.asarray(sample_differences(jnp.asarray(tables), rows, columns, jnp.asarray(positions)))
    assert found.shape == (2, 2, 3, 3, 4, 6)
    for image, group, y, x, index in np.ndindex(2, 2, 3, 4, 6):
        difference = (np.array([rows[y], columns[x]]) - positions[image, group, index]) / 2
        expected = sample(tables[group].transpose(1, 2, 0), difference)
        np.testing.assert_allclose(found[image, group, :, y, x, index], expected, rtol=0, atol=1e-12)
