"""What the clusters of trained networks look like: whether they follow edges, and pictures of them.

Shape letters: n images, S side of what a model sees, Y side of a picture in pixels, H W features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from stce_jax.analysis.drawing import introspection, pictures
from stce_jax.analysis.edges import agreements, gradients
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs

IMAGES = 256  # of the test images, evenly spaced, whose clusters are compared with edges
PHOTOS = 6  # of these, on the pictures
TILE = 176  # pixels
_BATCH = 64


def has_clusters(config: Any) -> bool:
    """Whether a config's model clusters: its embedding is `stce`, with iterations."""
    embedding: Any = runs.build_model(config, 1).embedding
    return getattr(embedding, "iterations", 0) > 0 and hasattr(embedding, "border")


def spaced(count: int, most: int) -> list[int]:
    """At most `most` places of 0..count - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def seen_images(config: Any, dataset: Any, places: Sequence[int]) -> UInt8[np.ndarray, "n S S 3"]:
    """Test images as a config's model sees them; raises DataError if one cannot be read."""
    views = runs.eval_views(config, dataset)
    return np.stack([views.view(place)[0] for place in places])


def edges_of_images(config: Any, dataset: Any) -> Float[np.ndarray, "n"]:
    """How strong the gradients of each test image are on average, 0..1 of the largest."""
    views = runs.eval_views(config, dataset)
    images = (views.view(place)[0][None] for place in range(len(views)))
    strength = np.array([float(gradients(image).mean()) for image in images])
    return strength / max(float(strength.max()), 1e-12)


def cluster_labels(
    run: runs.Run, images: UInt8[np.ndarray, "n S S 3"], side: int
) -> tuple[Int[np.ndarray, "n Y Y"], Int[np.ndarray, "Y Y"]]:
    """(the super token of greatest affinity of each pixel, the cell of each pixel) at pictures of `side` Y.

    Args:
      run: whose embedding clusters.
      images: as its model sees them.
      side: Y.
    """
    find = jax.jit(lambda variables, batch: introspection.iterated_affinities(run.model, variables, batch)[-1])
    embedding: Any = run.model.embedding
    nearest = introspection.nearest_features(embedding, images.shape[1], side)  # [Y]
    labels = []
    for start in range(0, len(images), _BATCH):
        batch = augment.normalize(images[start : start + _BATCH], mean=run.mean, std=run.std)
        affinity = np.asarray(find(run.variables, batch))
        labels.append(introspection.super_token_labels(affinity, embedding.cell)[:, nearest[:, None], nearest])
    cells = introspection.grid_labels(affinity.shape[1], affinity.shape[2], embedding.cell)
    return np.concatenate(labels), cells[nearest[:, None], nearest]


def look(workdir: Path, dataset: Any) -> dict[str, Float[np.ndarray, "n"]]:
    """`analysis.edges.agreements` of a trained run whose embedding clusters, on IMAGES of the test images."""
    run = runs.load_run(workdir)
    images = seen_images(run.config, dataset, spaced(len(dataset.val), IMAGES))
    return agreements(images, *cluster_labels(run, images, images.shape[1]))


def sheet(workdirs: Mapping[str, Path], dataset: Any) -> Image.Image | None:
    """The same photos for all: each photo, its cells, and the borders of each network's clusters.

    Args:
      workdirs: {caption: run whose embedding clusters}, of one size of images and data set.
      dataset: theirs.

    Returns:
      A row for each photo; None without a run.
    """
    columns: list[list[tuple[UInt8[np.ndarray, "Y Y 3"], str]]] = []
    for caption, workdir in workdirs.items():
        run = runs.load_run(workdir)
        images = seen_images(run.config, dataset, spaced(len(dataset.val), PHOTOS))
        photos = [np.asarray(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC)) for image in images]
        labels, cells = cluster_labels(run, images, TILE)
        if not columns:
            columns.append([(photo, "the photo") for photo in photos])
            columns.append([(pictures.draw_boundaries(photo, cells), "cells") for photo in photos])
        drawn = zip(photos, labels, strict=True)
        columns.append([(pictures.draw_boundaries(photo, own), caption) for photo, own in drawn])
    return pictures.sheet([list(row) for row in zip(*columns, strict=True)]) if columns else None
