"""Which way of computing super-token clustering is fastest?

    python benchmarks/clustering_forms.py --json clustering_forms.json

Every form computes what `cluster_super_tokens` computes (border "zero", gradient stopped at the affinities) and is
first checked against it. Then come forward and backward time and XLA's temporary memory of each form alone, and the
time of a training step's forward and backward pass through vit_s_stce with the shipped and the leading other forms
inside.

Shape letters: B batch; H W feature height and width; h w super-token grid; C channels; K = 9 neighbours; P tokens and
R super tokens of a group of cells that are multiplied with each other; G groups of an image.
"""

import argparse
import functools
import json
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from measure import interleave, machine, markdown_table, median_estimate

from stce_jax.models.embeddings import stce as embeddings
from stce_jax.models.factory import create_model
from stce_jax.models.ops.supertoken import cell_shape, cluster_super_tokens, grid_shape

SHIPPED = "shipped"
ITERATIONS = 3
GEOMETRIES = ((28, 2), (56, 4))  # side of the feature map, side of a cell
CHANNELS = 64
TOLERANCE = 1e-4
EPSILON = 1e-12
OFFSETS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Grid(NamedTuple):
    """h, w, and the two sides of a cell in pixels."""

    rows: int
    columns: int
    cell_rows: int
    cell_columns: int


class Form(NamedTuple):
    """One way to compute.

    Attributes:
      arrange: (features [B, H, W, C], grid) -> the tokens in the order in which this form wants them.
      affinity: (tokens, super tokens [B, h, w, C], grid) -> affinities, laid out as this form likes.
      aggregate: (tokens, affinities, grid) -> super tokens [B, h, w, C].
      scan: whether the iterations are a loop in the compiled program, or written out.
    """

    arrange: Callable
    affinity: Callable
    aggregate: Callable
    scan: bool = False


def cluster_with(form):
    """A stand-in for `cluster_super_tokens` that computes by `form`; in the affinities' place it returns None."""

    def cluster(features, cell, iterations=3, *, border="zero", differentiable=False):
        if border != "zero" or differentiable:
            raise NotImplementedError("the forms compared here have border zero and stopped gradients")
        batch, height, width, channels = features.shape
        grid = Grid(*grid_shape(height, width, cell), *cell_shape(cell))
        bottom, right = grid.rows * grid.cell_rows - height, grid.columns * grid.cell_columns - width
        features = jnp.pad(features.astype(jnp.float32), ((0, 0), (0, bottom), (0, right), (0, 0)))
        cells = jax.lax.stop_gradient(features).reshape(
            batch, grid.rows, grid.cell_rows, grid.columns, grid.cell_columns, channels
        )
        super_tokens = cells.mean(axis=(2, 4))  # [B, h, w, C]
        tokens = form.arrange(features, grid)
        constant = jax.lax.stop_gradient(tokens)

        def iterate(super_tokens, _):
            return form.aggregate(constant, form.affinity(constant, super_tokens, grid), grid), None

        unroll = 1 if form.scan else True
        super_tokens, _ = jax.lax.scan(iterate, super_tokens, None, length=iterations - 1, unroll=unroll)
        return form.aggregate(tokens, form.affinity(constant, super_tokens, grid), grid), None

    return cluster


def _scaled(super_tokens):
    return super_tokens * (1.0 / np.sqrt(super_tokens.shape[-1]).item())


def _softmax(logits, axis):
    weights = jnp.exp(logits - logits.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def blocks(block_rows, block_columns, *, order="rp", scan=False):
    """Groups are blocks of cells; each of a block's P tokens meets the block's R super tokens and those around it.

    The shipped form's are of 2x2 cells; a single cell is "nine shifts with a product per cell".

    Args:
      block_rows, block_columns: cells of a block; must divide the grid. None stands for the grid's whole side.
      order: "pr" or "rp", which of the affinities' two last axes is the last.
      scan: see `Form`.
    """
    over_super_tokens = order.index("r") - 2

    def block_shape(grid):
        return block_rows or grid.rows, block_columns or grid.columns

    def arrange(features, grid):
        down, across = block_shape(grid)
        batch, height, width, channels = features.shape
        tall, wide = down * grid.cell_rows, across * grid.cell_columns
        features = features.reshape(batch, height // tall, tall, width // wide, wide, channels)
        features = features.transpose(0, 1, 3, 2, 4, 5)  # [B, h/down, w/across, tall, wide, C]
        return features.reshape(batch, -1, tall * wide, channels)  # [B, G, P, C]

    def affinity(tokens, super_tokens, grid):
        down, across = block_shape(grid)
        batch, _, _, channels = super_tokens.shape
        padded = jnp.pad(_scaled(super_tokens), ((0, 0), (1, 1), (1, 1), (0, 0)))  # [B, h+2, w+2, C]
        around = _windows(_windows(padded, 1, down), 3, across)  # [B, h/down, down+2, w/across, across+2, C]
        around = around.transpose(0, 1, 3, 2, 4, 5)  # [B, h/down, w/across, down+2, across+2, C]
        around = around.reshape(batch, -1, (down + 2) * (across + 2), channels)  # [B, G, R, C]
        visible = _visible_in_block(down, across, grid)  # [P, R]
        logits = einsum(f"bgpc,bgrc->bg{order}", tokens, around)
        logits = jnp.where(visible if order == "pr" else visible.T, logits, -jnp.inf)
        return _softmax(logits, over_super_tokens)

    def aggregate(tokens, affinities, grid):
        sums = einsum(f"bg{order},bgpc->bgrc", affinities, tokens)
        shares = affinities.sum(axis=-3 - over_super_tokens)[..., None]  # [B, G, R, 1]
        return _blocks_onto_grid(sums, grid) / (_blocks_onto_grid(shares, grid) + EPSILON)

    def _blocks_onto_grid(values, grid):
        """[B, G, R, C] -> [B, h, w, C]: adds what the blocks give to each super token."""
        down, across = block_shape(grid)
        batch, _, _, channels = values.shape
        values = values.reshape(batch, grid.rows // down, grid.columns // across, down + 2, across + 2, channels)
        values = values.transpose(0, 1, 3, 2, 4, 5)  # [B, h/down, down+2, w/across, across+2, C]
        return _add_windows(_add_windows(values, 1), 2)

    return Form(arrange, affinity, aggregate, scan)


def _windows(padded, axis, size):
    """Cuts an axis of n * size + 2 entries into n windows of size + 2 that overlap by two: [n, size + 2] instead."""
    count = (padded.shape[axis] - 2) // size
    windows = [jax.lax.slice_in_dim(padded, i * size, (i + 1) * size + 2, axis=axis) for i in range(count)]
    return jnp.stack(windows, axis=axis)


def _add_windows(windows, axis):
    """The reverse of `_windows`: [n, size + 2] at `axis` becomes n * size, overlaps added, the two ends dropped."""
    before, (count, size), after = windows.shape[:axis], windows.shape[axis : axis + 2], windows.shape[axis + 2 :]
    size -= 2
    windows = windows.reshape(*before, count, size + 2, -1)  # what comes after as one axis
    none = [(0, 0)] * axis
    to_previous = jnp.pad(windows[..., 1:, :1, :], (*none, (0, 1), (size - 1, 0), (0, 0)))
    to_next = jnp.pad(windows[..., :-1, -1:, :], (*none, (1, 0), (0, size - 1), (0, 0)))
    return (windows[..., 1:-1, :] + to_previous + to_next).reshape(*before, count * size, *after)


def _visible_in_block(down, across, grid):
    """Which of the R super tokens in and around a block of cells each of its P tokens compares itself with: [P, R]."""
    near_row = _near(down, grid.cell_rows)  # [tall, down+2]
    near_column = _near(across, grid.cell_columns)  # [wide, across+2]
    near = near_row[:, None, :, None] & near_column[None, :, None, :]  # [tall, wide, down+2, across+2]
    return near.reshape(len(near_row) * len(near_column), -1)


def _near(cells, cell):
    """Along one side: is a pixel's own cell at most one away from each cell, one beyond either end included?"""
    own = np.repeat(np.arange(cells), cell)
    return np.abs(own[:, None] - np.arange(-1, cells + 1)) <= 1  # [cells * cell, cells+2]


def bands_without_border_columns():
    """Row bands that multiply 3w super tokens rather than 3(w + 2): the zeros left and right are only counted."""

    def arrange(features, grid):
        batch, _, width, channels = features.shape
        return features.reshape(batch, grid.rows, grid.cell_rows * width, channels)  # [B, h, P, C]

    def affinity(tokens, super_tokens, grid):
        batch, rows, columns, channels = super_tokens.shape
        padded = jnp.pad(_scaled(super_tokens), ((0, 0), (1, 1), (0, 0), (0, 0)))  # [B, h+2, w, C]
        around = _windows(padded, 1, 1).reshape(batch, rows, 3 * columns, channels)  # [B, h, R, C]
        near_column = _near(columns, grid.cell_columns)[:, 1:-1]  # [W, w]
        visible = np.tile(near_column.T, (3, grid.cell_rows))  # [R, P]
        missing = np.float32(9 - visible.sum(axis=0))  # [P], neighbours left or right of the grid
        logits = jnp.where(visible, einsum("bhrc,bhpc->bhrp", around, tokens), -jnp.inf)
        highest = jnp.maximum(logits.max(axis=2), np.where(missing > 0, 0.0, -np.inf))  # [B, h, P]
        weights = jnp.exp(logits - highest[:, :, None])
        return weights / (weights.sum(axis=2) + missing * jnp.exp(-highest))[:, :, None]

    def aggregate(tokens, affinities, grid):
        sums = einsum("bhrp,bhpc->bhrc", affinities, tokens)
        shares = affinities.sum(axis=3)[..., None]  # [B, h, R, 1]
        return _bands_onto_grid(sums, grid) / (_bands_onto_grid(shares, grid) + EPSILON)

    def _bands_onto_grid(values, grid):
        batch, rows, _, channels = values.shape
        return _add_windows(values.reshape(batch, rows, 3, grid.columns, channels), 1)  # [B, h, w, C]

    return Form(arrange, affinity, aggregate)


def shifts_elementwise():
    """Nine shifted copies of the super tokens, each multiplied with the tokens number by number and summed."""

    def arrange(features, grid):
        batch, _, _, channels = features.shape
        return features.reshape(batch, grid.rows, grid.cell_rows, grid.columns, grid.cell_columns, channels)

    def affinity(tokens, super_tokens, grid):
        padded = jnp.pad(_scaled(super_tokens), ((0, 0), (1, 1), (1, 1), (0, 0)))  # [B, h+2, w+2, C]
        logits = []
        for dy, dx in OFFSETS:
            shifted = padded[:, 1 + dy : 1 + dy + grid.rows, 1 + dx : 1 + dx + grid.columns]  # [B, h, w, C]
            logits.append((tokens * shifted[:, :, None, :, None]).sum(axis=-1))  # [B, h, rows, w, columns]
        return _softmax(jnp.stack(logits), 0)  # [K, B, h, rows, w, columns]

    def aggregate(tokens, affinities, grid):
        sums = [(tokens * weights[..., None]).sum(axis=(2, 4)) for weights in affinities]  # K of [B, h, w, C]
        shares = [weights.sum(axis=(2, 4))[..., None] for weights in affinities]  # K of [B, h, w, 1]
        return _shift_back(sums) / (_shift_back(shares) + EPSILON)

    def _shift_back(values):
        padded = [jnp.pad(value, ((0, 0), (1, 1), (1, 1), (0, 0))) for value in values]  # K of [B, h+2, w+2, C]
        rows, columns = values[0].shape[1:3]
        shifted = zip(padded, OFFSETS, strict=True)
        return sum(value[:, 1 - dy : 1 - dy + rows, 1 - dx : 1 - dx + columns] for value, (dy, dx) in shifted)

    return Form(arrange, affinity, aggregate)


def _as_list(features, grid):
    batch, height, width, channels = features.shape
    return features.reshape(batch, height * width, channels)  # [B, HW, C]


def _own_cell(grid):
    """Row and column of the cell of every token of the map, row by row: two [HW]."""
    row = np.repeat(np.arange(grid.rows), grid.cell_rows)  # [H]
    column = np.repeat(np.arange(grid.columns), grid.cell_columns)  # [W]
    return np.repeat(row, len(column)), np.tile(column, len(row))


def gather_scatter():
    """Every token fetches its nine super tokens by index, and adds itself to the nine by index."""

    def neighbours(grid):
        """Index of each token's nine super tokens in the grid with its border, [HW, K]."""
        row, column = _own_cell(grid)
        return np.stack([(row + 1 + dy) * (grid.columns + 2) + column + 1 + dx for dy, dx in OFFSETS], axis=1)

    def affinity(tokens, super_tokens, grid):
        padded = jnp.pad(_scaled(super_tokens), ((0, 0), (1, 1), (1, 1), (0, 0)))
        padded = padded.reshape(len(padded), -1, padded.shape[-1])  # [B, (h+2)(w+2), C]
        return _softmax(einsum("bpc,bpkc->bpk", tokens, padded[:, neighbours(grid)]), -1)

    def aggregate(tokens, affinities, grid):
        sums = _scatter(affinities[..., None] * tokens[:, :, None], grid)  # from [B, HW, K, C]
        return sums / (_scatter(affinities[..., None], grid) + EPSILON)

    def _scatter(values, grid):
        batch, channels = values.shape[0], values.shape[-1]
        sums = jnp.zeros((batch, (grid.rows + 2) * (grid.columns + 2), channels), values.dtype)
        sums = sums.at[:, neighbours(grid)].add(values)
        return sums.reshape(batch, grid.rows + 2, grid.columns + 2, channels)[:, 1:-1, 1:-1]  # [B, h, w, C]

    return Form(_as_list, affinity, aggregate)


def dense():
    """Every token meets every super token of the image; a mask leaves it its neighbours."""

    def affinity(tokens, super_tokens, grid):
        batch, rows, columns, channels = super_tokens.shape
        own_row, own_column = _own_cell(grid)
        row, column = np.indices((rows + 2, columns + 2)).reshape(2, -1) - 1  # each [(h+2)(w+2)]
        near = (np.abs(own_row[:, None] - row) <= 1) & (np.abs(own_column[:, None] - column) <= 1)
        padded = jnp.pad(_scaled(super_tokens), ((0, 0), (1, 1), (1, 1), (0, 0)))
        padded = padded.reshape(batch, -1, channels)  # [B, (h+2)(w+2), C]
        return _softmax(jnp.where(near, einsum("bpc,brc->bpr", tokens, padded), -jnp.inf), -1)

    def aggregate(tokens, affinities, grid):
        batch, _, channels = tokens.shape
        sums = einsum("bpr,bpc->brc", affinities, tokens)
        sums = sums.reshape(batch, grid.rows + 2, grid.columns + 2, channels)[:, 1:-1, 1:-1]  # [B, h, w, C]
        shares = affinities.sum(axis=1).reshape(batch, grid.rows + 2, grid.columns + 2, 1)[:, 1:-1, 1:-1]
        return sums / (shares + EPSILON)

    return Form(_as_list, affinity, aggregate)


FORMS = {
    SHIPPED: cluster_super_tokens,
    "row bands, scan": cluster_with(blocks(1, None, order="pr", scan=True)),
    "row bands, unrolled": cluster_with(blocks(1, None, order="pr")),
    "row bands, tokens last": cluster_with(blocks(1, None)),
    "row bands, tokens last, no border columns": cluster_with(bands_without_border_columns()),
    "blocks of 1x7 cells": cluster_with(blocks(1, 7)),
    "blocks of 1x2 cells": cluster_with(blocks(1, 2)),
    "blocks of 2x2 cells": cluster_with(blocks(2, 2)),
    "blocks of 2x2 cells, scan": cluster_with(blocks(2, 2, scan=True)),
    "blocks of 2x2 cells, super tokens last": cluster_with(blocks(2, 2, order="pr")),
    "nine shifts, product per cell": cluster_with(blocks(1, 1)),
    "nine shifts, elementwise": cluster_with(shifts_elementwise()),
    "gather/scatter": cluster_with(gather_scatter()),
    "dense, masked": cluster_with(dense()),
}
# Tried inside the whole model, with the shipped form a second time: what differs there is noise.
LEADING = (SHIPPED, "row bands, tokens last", "blocks of 2x2 cells", "nine shifts, product per cell")
AGAIN = "shipped, again"


def check_forms(batch=2):
    """Compares every form's tokens and gradient with the shipped one's on random features.

    Returns:
      dict name -> largest absolute difference.

    Raises:
      SystemExit: a form differs by more than the tolerance.
    """
    differences = dict.fromkeys(FORMS, 0.0)
    for side, cell in GEOMETRIES:
        features, cotangent = _random_features(batch, side, cell)
        results = {}
        for name, cluster in FORMS.items():
            tokens = cluster(features, cell, ITERATIONS)[0]
            gradient = jax.jit(_forward_backward(cluster, cell))(features, cotangent)[1]
            results[name] = (tokens, gradient)
        for name, result in results.items():
            worst = max(float(jnp.abs(a - b).max()) for a, b in zip(result, results[SHIPPED], strict=True))
            differences[name] = max(differences[name], worst)
    wrong = {name: difference for name, difference in differences.items() if not difference <= TOLERANCE}
    if wrong:
        raise SystemExit(f"these forms compute something else than the shipped one: {wrong}")
    return differences


def _random_features(batch, side, cell):
    """Features [B, side, side, C] and a gradient [B, h, w, C] for their super tokens."""
    feature_key, cotangent_key = jax.random.split(jax.random.key(0))
    rows, columns = grid_shape(side, side, cell)
    features = jax.random.normal(feature_key, (batch, side, side, CHANNELS))
    return features, jax.random.normal(cotangent_key, (batch, rows, columns, CHANNELS))


def _forward_backward(cluster, cell):
    """The function (features, cotangent) -> (loss, gradient), with the loss <super tokens, cotangent>."""

    def loss(features, cotangent):
        return jnp.vdot(cluster(features, cell, ITERATIONS)[0], cotangent)

    return jax.value_and_grad(loss)


def measure_alone(batch, rounds):
    """One row a geometry and form: forward and backward time and temporary memory of the clustering alone."""
    rows = []
    for side, cell in GEOMETRIES:
        features, cotangent = _random_features(batch, side, cell)
        functions, megabytes = {}, {}
        for name, cluster in FORMS.items():
            compiled = jax.jit(_forward_backward(cluster, cell)).lower(features, cotangent).compile()
            functions[name] = functools.partial(compiled, features, cotangent)
            megabytes[name] = _temporary_megabytes(compiled)
        label = f"{side}x{side}x{CHANNELS}, cell {cell}"
        seconds = interleave(functions, rounds)
        rows += [_row(label, name, seconds) | {"temporary MB": megabytes[name]} for name in FORMS]
    return rows


def measure_whole_model(batch, rounds):
    """One row a form: forward and backward pass of vit_s_stce at 224 pixels with this form inside."""
    model = create_model("vit_s_stce", num_classes=100, iterations=ITERATIONS)
    images = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images)

    def loss(params, images):
        tracked = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, updates = model.apply(tracked, images, train=True, mutable=["batch_stats"])
        return jax.nn.logsumexp(logits, axis=-1).mean() - logits[:, 0].mean(), updates  # as if all were of class 0

    functions, megabytes = {}, {}
    for name in LEADING:
        with mock.patch.object(embeddings, "cluster_super_tokens", FORMS[name]):
            # A function of its own for each form: jit remembers what it traced by the function.
            step = jax.jit(jax.value_and_grad(lambda *inputs: loss(*inputs), has_aux=True))
            compiled = step.lower(variables["params"], images).compile()
        functions[name] = functools.partial(compiled, variables["params"], images)
        megabytes[name] = _temporary_megabytes(compiled)
    functions[AGAIN], megabytes[AGAIN] = functions[SHIPPED], megabytes[SHIPPED]
    seconds = interleave(functions, rounds)
    label = f"vit_s_stce, 224 px, batch {batch}"
    return [_row(label, name, seconds) | {"temporary MB": megabytes[name]} for name in functions]


def _temporary_megabytes(compiled):
    return round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)


def _row(label, name, seconds):
    """A form's row: medians in milliseconds, and its time over the shipped form's in the same round."""
    row = {"what": label, "form": name}
    for clock in ("wall", "cpu"):
        own, shipped = getattr(seconds[name], clock), getattr(seconds[SHIPPED], clock)
        ratio = median_estimate(a / b for a, b in zip(own, shipped, strict=True))
        row |= {f"{clock} ms": round(1e3 * np.median(own).item(), 1), f"{clock} of shipped": ratio}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="feature maps at once, for the clustering alone")
    parser.add_argument("--rounds", type=int, default=20, help="rounds for the clustering alone")
    parser.add_argument("--whole_model", type=int, default=10, metavar="ROUNDS", help="for the model; 0 leaves it out")
    parser.add_argument("--model_batch", type=int, default=4, help="images at once, for the model")
    parser.add_argument("--json", metavar="PATH", help="also write the rows there; ratios as [median, margin]")
    arguments = parser.parse_args()

    print(machine())
    worst = max(check_forms().values())
    print(f"All {len(FORMS)} forms agree with the shipped one, tokens and gradients, to {worst:.1e}.", flush=True)
    rows = measure_alone(arguments.batch, arguments.rounds)
    print(f"\nClustering alone, T={ITERATIONS}, batch {arguments.batch}, forward and backward:\n")
    print(markdown_table(rows), flush=True)
    model_rows = []
    if arguments.whole_model:
        model_rows = measure_whole_model(arguments.model_batch, arguments.whole_model)
        print(f"\nWhole model, forward and backward:\n\n{markdown_table(model_rows)}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine(), "alone": rows, "whole_model": model_rows}, file, indent=2)


if __name__ == "__main__":
    main()
