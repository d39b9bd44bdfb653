"""Position embeddings: the fixed ones, and learned ones on other grids."""

import numpy as np

from stce_jax.models.ops import positions


def test_sincos_positions():
    embedding = positions.sincos_position_embedding((3, 4), 8)
    assert embedding.shape == (1, 12, 8)
    row, column = 2, 1
    angles = [position / 10000.0 ** (i / 2) for position in (column, row) for i in range(2)]
    expected = [*np.sin(angles[:2]), *np.cos(angles[:2]), *np.sin(angles[2:]), *np.cos(angles[2:])]
    np.testing.assert_allclose(embedding[0, row * 4 + column], expected, rtol=1e-6)


def test_resizing_positions_keeps_their_place():
    """A linear ramp stays a linear ramp (but for the border), and the same grid is untouched."""
    ramp = np.broadcast_to(np.arange(8.0)[None, :, None], (8, 8, 2)).reshape(1, 64, 2)
    assert positions.resize_position_embedding(ramp, (8, 8), (8, 8)) is ramp
    resized = np.asarray(positions.resize_position_embedding(ramp, (8, 8), (8, 16))).reshape(8, 16, 2)
    expected = (np.arange(16) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(resized[4, 4:-4, 0], expected[4:-4], atol=1e-5)
