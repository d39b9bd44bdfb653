"""Position embeddings: the fixed ones, and learned ones on other grids."""

import jax
import numpy as np
import pytest
from golden_files import golden

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


def cubic(distance):
    """Keys' cubic convolution with PyTorch's a."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resized(grid, size):
    """Place by place, as it is defined."""
    found = np.zeros((*size, grid.shape[2]))
    for row, column in np.ndindex(size):
        y, x = ((at + 0.5) * old / new - 0.5 for at, old, new in zip((row, column), grid.shape, size, strict=False))
        for one in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
            for other in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                inside = min(max(one, 0), grid.shape[0] - 1), min(max(other, 0), grid.shape[1] - 1)
                found[row, column] += cubic(y - one) * cubic(x - other) * grid[inside]
    return found


@pytest.mark.parametrize(
    ("old", "new"), [((3, 3), (7, 7)), ((13, 13), (7, 7)), ((5, 2), (1, 9)), ((1, 1), (3, 2)), ((4, 3), (4, 3))]
)
def test_bicubic_is_cubic_convolution_with_its_border_repeated(old, new):
    grid = np.random.default_rng(0).normal(size=(*old, 3))
    np.testing.assert_allclose(positions.resize_bicubic(grid, new), resized(grid, new), atol=1e-12)
    single = positions.resize_bicubic(grid.astype(np.float32), new)
    assert single.dtype == np.float32 and single.shape == (*new, 3)
    np.testing.assert_allclose(single, resized(grid, new), atol=1e-6)


def test_bicubic_equals_timms_position_embeddings():
    """Those without antialiasing; with it, `resize_position_embedding` equals the others."""
    arrays = golden("bodies", "pos_embed_resample")
    names = [name.removesuffix("/meta") for name in arrays if name.endswith("/meta")]
    antialiased = {name: bool(arrays[f"{name}/meta"][5]) for name in names}
    assert set(antialiased.values()) == {True, False}
    for name in names:
        *sides, prefix, _ = map(int, arrays[f"{name}/meta"])
        old, new = tuple(sides[:2]), tuple(sides[2:])
        before, after = (arrays[f"{name}/{kind}"][:, prefix:].astype(np.float32) for kind in ("in", "out"))
        if antialiased[name]:
            found = positions.resize_position_embedding(jax.numpy.asarray(before), old, new)
        else:
            found = positions.resize_bicubic(before.reshape(*old, -1), new).reshape(after.shape)
        np.testing.assert_allclose(found, after, atol=5e-6, err_msg=name)
