"""Labels, affinities and attention read out of models: equal to plain loops, and to NumPy's models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from helpers import initial

from stce_jax.analysis.drawing import introspection
from stce_jax.errors import ConfigError
from stce_jax.models.embeddings import ConvEmbed, EarlyConvEmbed, PatchEmbed, SuperTokenConvEmbed
from stce_jax.models.factory import create_model
from stce_jax.models.ops.supertoken import cluster_super_tokens as clustering
from stce_jax.models.ops.supertoken import grid_shape

cluster_super_tokens = jax.jit(clustering, static_argnums=(1, 2), static_argnames="border")
SMALL = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
STEM = {"stem_widths": (6, 8), "stem_strides": (2, 1)}
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


def neighbours(y, x, cell, grid):
    """(k, row, column, whether it is inside the grid) of a pixel's nine neighbours, as the affinity counts them."""
    for k in range(9):
        row, column = y // cell[0] + k // 3 - 1, x // cell[1] + k % 3 - 1
        yield k, row, column, 0 <= row < grid[0] and 0 <= column < grid[1]


@pytest.mark.parametrize("cell, grid", [((2, 2), (4, 5)), ((2, 3), (3, 2)), ((1, 1), (3, 3)), ((3, 2), (1, 1))])
def test_labels_are_those_of_a_loop_over_pixels(cell, grid):
    affinity = np.random.default_rng(1).random((2, grid[0] * cell[0], grid[1] * cell[1], 9))
    labels = introspection.super_token_labels(affinity, cell)
    assert labels.dtype == np.int32 and labels.shape == affinity.shape[:3]
    beyond = 0
    for b, y, x in np.ndindex(labels.shape):
        around = list(neighbours(y, x, cell, grid))
        _, row, column, _ = max((n for n in around if n[3]), key=lambda n: affinity[b, y, x, n[0]])
        assert labels[b, y, x] == row * grid[1] + column, f"pixel {y},{x} of image {b}"
        beyond += not around[affinity[b, y, x].argmax()][3]
    assert beyond, "no pixel gave most of its affinity beyond the grid, so that was not tested"


def test_of_affinities_that_differ_by_rounding_alone_the_own_cell_counts():
    affinity = np.float32(1 / 9) * (1 + 1e-6 * np.random.default_rng(5).random((8, 6, 9), np.float32))
    labels = introspection.super_token_labels(affinity, 2)
    np.testing.assert_array_equal(labels, introspection.grid_labels(8, 6, 2), "a plain image's grid has moved")
    affinity[0, 0, 8] *= 1.001
    assert introspection.super_token_labels(affinity, 2)[0, 0] == 4, "a greater affinity does not count"


def test_the_cells_are_the_regular_grid():
    expected = np.kron(np.arange(12).reshape(3, 4), np.ones((2, 3), int))
    np.testing.assert_array_equal(introspection.grid_labels(6, 12, (2, 3)), expected)
    cut = introspection.grid_labels(5, 10, (2, 3))
    np.testing.assert_array_equal(cut, expected[:5, :10], "of a map that the cells do not divide the last are cut off")


@pytest.mark.slow
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_the_affinity_to_a_token_is_its_column(border):
    features = np.random.default_rng(2).normal(size=(1, 6, 9, 4)).astype(np.float32)
    cell, grid = (2, 3), (3, 3)
    affinity = np.asarray(cluster_super_tokens(features, cell, 2, border=border)[1])
    total = np.zeros((1, 6, 9))
    for token in np.ndindex(grid):
        found = introspection.token_affinity(affinity, cell, *token)
        expected = np.zeros((1, 6, 9))
        for _, y, x in np.ndindex(expected.shape):
            for k, row, column, _ in neighbours(y, x, cell, grid):
                if (row, column) == token:
                    expected[0, y, x] = affinity[0, y, x, k]
        np.testing.assert_array_equal(found, expected, f"token {token}")
        total += found
    if border == "mask":
        np.testing.assert_allclose(total, 1, atol=1e-6, err_msg="what all tokens get is not the whole")


@pytest.mark.slow
@pytest.mark.parametrize("edge", ["diagonal", "circle"])
def test_the_super_tokens_of_two_colours_follow_the_edge_between_them(edge):
    y, x = np.mgrid[:24, :24]
    inside = 2 * y + 3 < 3 * x if edge == "diagonal" else (y - 11) ** 2 + (x - 12) ** 2 < 60
    features = np.where(inside[:, :, None], [3.0, 0.0], [0.0, 3.0])[None].astype(np.float32)

    def mixed(labels):
        """How many super tokens have pixels of both colours."""
        return sum(0 < inside[labels == label].mean() < 1 for label in np.unique(labels))

    cells = introspection.grid_labels(24, 24, 4)
    assert mixed(cells) >= 8, f"only {mixed(cells)} cells cross the edge"
    for iterations in (1, 3):
        affinity = cluster_super_tokens(features, 4, iterations)[1]
        labels = introspection.super_token_labels(affinity, 4)[0]
        assert mixed(labels) == 0, f"{mixed(labels)} of {mixed(cells)} cross the edge still, T = {iterations}"
        if iterations == 1:
            pure = [label for label in np.unique(cells) if inside[cells == label].mean() in (0, 1)]
            away = np.isin(cells, pure)
            np.testing.assert_array_equal(labels[away], cells[away], "pixels have left cells that the edge is not in")


@pytest.mark.slow
@pytest.mark.parametrize("iterations, border, cell", [(3, "zero", 2), (2, "mask", (2, 4)), (0, "zero", 2)])
def test_affinities_of_each_iteration(iterations, border, cell):
    options = {"iterations": iterations, "border": border, "cell": cell}
    model = create_model("vit_ti_stce", num_classes=0, image_size=12, **{**SMALL, **STEM, "depth": 1}, **options)
    variables = initial(model, IMAGES, train=False)
    found = jax.jit(functools.partial(introspection.iterated_affinities, model))(variables, IMAGES)
    assert len(found) == iterations
    params, stats = (jax.tree.map(np.float64, variables[kind]["embedding"]) for kind in ("params", "batch_stats"))
    features = numpy_reference.conv_stack(IMAGES.astype(float), params, stats, (2, 1))  # [2, 6, 6, 8]
    rows_columns = (cell, cell) if isinstance(cell, int) else cell
    for number, affinity in enumerate(found, 1):
        _, expected = numpy_reference.cluster_super_tokens(features, rows_columns, number, border)
        np.testing.assert_allclose(affinity, expected, atol=1e-5, err_msg=f"iteration {number}")
    _, sown = jax.jit(lambda v: model.apply(v, IMAGES, train=False, mutable="intermediates"))(variables)
    if iterations:
        np.testing.assert_allclose(found[-1], sown["intermediates"]["embedding"]["affinity"][0], atol=1e-6)


def stacked(params, depth):
    """Parameters of a model with scan_layers."""
    blocks = [params[f"blocks_{index}"] for index in range(depth)]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("blocks_")}
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


@pytest.mark.slow
@pytest.mark.parametrize("depth, options", [(11, {}), (2, {"remat": True}), (2, {"scan_layers": True})])
def test_attention_of_the_class_token(depth, options):  # of 11, "blocks_10" must not come before "blocks_2"
    heads = 2
    options = {**SMALL, "depth": depth, "patch_size": 4, **options}
    plain = create_model("vit_ti_patch", num_classes=0, image_size=12, **{**options, "scan_layers": False})
    model = create_model("vit_ti_patch", num_classes=0, image_size=12, **options)
    params = initial(plain, IMAGES, train=False)["params"]
    params = jax.tree.map(lambda leaf: 3 * np.asarray(leaf, np.float64), params)
    scanned = stacked(params, depth) if options.get("scan_layers") else params
    find = jax.jit(lambda variables, images: introspection.class_attention(model, variables, images))
    found = find({"params": jax.tree.map(jnp.float32, scanned)}, IMAGES)
    assert found.shape == (depth, 2, 3, 3)

    tokens = numpy_reference.patch_embed(IMAGES.astype(float), params["embedding"], 4)
    first = np.repeat(params["class_token"], 2, axis=0)
    tokens = np.concatenate([first, tokens], axis=1) + params["position_embedding"]
    for index in range(depth):
        block = params[f"blocks_{index}"]
        normed = numpy_reference.layer_norm(tokens, block["attention_norm"])
        qkv = numpy_reference.dense(normed, block["attention"]["qkv"]).reshape(2, 10, 3, heads, 8)
        for image, attention in enumerate(found[index]):
            query, key = qkv[image, 0, 0], qkv[image, :, 1]  # [A, E], [10, A, E]
            rows = [numpy_reference.softmax(key[:, head] @ query[head] / np.sqrt(8)) for head in range(heads)]
            expected = np.mean(rows, axis=0)[1:].reshape(3, 3)
            np.testing.assert_allclose(attention, expected, atol=1e-5, err_msg=f"block {index + 1}")
        tokens = tokens + numpy_reference.attention(normed, block["attention"], heads)
        hidden = numpy_reference.layer_norm(tokens, block["mlp_norm"])
        hidden = numpy_reference.gelu(numpy_reference.dense(hidden, block["mlp"]["in"]))
        tokens = tokens + numpy_reference.dense(hidden, block["mlp"]["out"])


@pytest.mark.slow
def test_what_a_model_does_not_have_is_refused():
    patch = create_model("vit_ti_patch", num_classes=0, image_size=16)
    with pytest.raises(ConfigError, match="no super tokens; use --attention"):
        introspection.check_super_tokens(patch, 16, affinities=False)
    pooled = create_model("vit_ti_stce", num_classes=0, image_size=16, iterations=0)
    introspection.check_super_tokens(pooled, 16, affinities=False)
    with pytest.raises(ConfigError, match="averages its cells, with iterations=0"):
        introspection.check_super_tokens(pooled, 16, affinities=True)
    mean = create_model("vit_ti_stce", num_classes=0, image_size=16, pooling="mean")
    with pytest.raises(ConfigError, match="no class token"):
        introspection.check_class_attention(mean, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "embedding, stride, shift",
    [
        (SuperTokenConvEmbed(8, (4, 4, 4), (2, 1, 2)), 4, 0),
        (ConvEmbed((4, 4, 8), (2, 2, 1)), 4, 0),
        (EarlyConvEmbed(8, (4, 4), (2, 2)), 4, 0),
        (PatchEmbed(8, 4), 4, 1.5),
        (SuperTokenConvEmbed(8, (), ()), 1, 0),
    ],
    ids=["stce", "conv", "earlyconv", "patch", "no stem"],
)
def test_features_are_drawn_in_the_middle_of_what_they_see(embedding, stride, shift):
    side = 32
    images = np.random.default_rng(3).normal(size=(1 + side, side, side, 3)).astype(np.float32)
    images[:] = images[:1]
    for column in range(side):
        images[1 + column, :, column] += 1  # each image differs from the first in one column

    def features(variables):
        tokens, sown = embedding.apply(variables, images, train=False, mutable="intermediates")
        found = sown.get("intermediates", {}).get(
            "features", (tokens.values.reshape(len(images), -1, side // stride, 8),)
        )
        return found[0]  # [1 + side, H, W, C]

    found = np.asarray(jax.jit(lambda key: features(embedding.init(key, images[:1], train=False)))(jax.random.key(0)))
    sees = np.abs(found[1:] - found[:1]).max(axis=(1, 3)) > 0  # [side, W]: which columns a feature depends on
    nearest = introspection.nearest_features(embedding, side, side)
    assert nearest[0] == 0 and nearest[-1] == side // stride - 1 and (np.diff(nearest) >= 0).all()
    whole = [i for i, seen in enumerate(sees.T) if not (seen[0] or seen[-1])]  # their view is not cut off
    assert whole
    for feature in whole:
        columns = np.flatnonzero(sees[:, feature])
        middle = (columns[0] + columns[-1]) / 2
        assert middle == feature * stride + shift, f"feature {feature} sees {columns}"
        drawn = np.flatnonzero(nearest == feature)
        assert len(drawn) == stride and abs(drawn.mean() - middle) <= 0.5, f"feature {feature} is drawn at {drawn}"


def test_enlarged_places_keep_their_proportions():
    embedding = SuperTokenConvEmbed(8, (4, 4), (2, 2), cell=(1, 2))
    small = introspection.nearest_features(embedding, 16, 16)
    np.testing.assert_array_equal(small, [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    large = introspection.nearest_features(embedding, 16, 80)
    pixels = (np.arange(80) - 2) / 5 + 1e-9  # the middle one of five lies where the pixel did; of two equal the later
    np.testing.assert_array_equal(large, np.abs(pixels[:, None] - 4 * np.arange(4)).argmin(axis=1))
    np.testing.assert_array_equal(large[2::5], small)
    rows, columns = introspection.nearest_tokens(embedding, 16, 80)
    np.testing.assert_array_equal(rows, large)
    np.testing.assert_array_equal(columns, large // 2)
    odd = introspection.nearest_features(embedding, 14, 14)
    assert odd.max() == grid_shape(14, 14, 4)[0] - 1, "a side that the stride does not divide has one feature more"
