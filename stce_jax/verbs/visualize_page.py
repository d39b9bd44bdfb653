"""`stce visualize --html`: one page for a browser with all that there is to see of a model."""

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from etils import epath

from stce_jax.analysis.drawing import reductions
from stce_jax.analysis.drawing.introspection import check_class_attention, check_super_tokens
from stce_jax.analysis.pages import looking
from stce_jax.data.files import list_images
from stce_jax.errors import ConfigError, DataError, check_whole
from stce_jax.models.bodies import Body
from stce_jax.paths import absolute, is_remote, named_failures, open_path, write_bytes
from stce_jax.verbs.compare import short_names
from stce_jax.verbs.visualize import SMALLEST_TILE, Subject, check_sizes, looker, named, views

PAGE = "index.html"
LARGEST_TILE = 1024  # pixels; larger ones could not be drawn anew as fast as a pointer moves


class Page(NamedTuple):
    """A page that was written.

    Attributes:
      path: of it.
      images: how many it shows.
      left_out: how many it would show besides, were it not larger then than `looking.LARGEST`.
      size: in bytes.
    """

    path: str
    images: int
    left_out: int
    size: int


def visualize_page(
    paths: epath.PathLike | Iterable[epath.PathLike],
    subject: Subject,
    output: str,
    *,
    about: str = "",
    tile: int = 448,
    unreadable: Callable[[DataError], None] | None = None,
) -> Page:
    """Writes one page that shows whatever there is of a model, for one image and one pixel at a time.

    Args:
      paths, subject, output, unreadable: see `visualize`.
      about: the model in words.
      tile: side in pixels of an image on the page, as JPEG; at most LARGEST_TILE.

    Raises:
      ConfigError: there is nothing of the model to show, one image alone makes the page too large, or it cannot be
        written.
      DataError: an image is not there or cannot be read; or none can.
      CheckpointError: the model gives no finite numbers.
    """
    check_sizes(subject, tile)
    check_whole("tile of a page", tile, SMALLEST_TILE, LARGEST_TILE)
    model, size = subject.model, subject.size
    missing = what_is_missing(model, size)
    kinds = [kind for kind in ("super_tokens", "attention", "reduction") if kind not in missing]
    if not kinds:
        raise ConfigError(f"there is nothing of this model to show: {'; '.join(missing.values())}")
    look, files = looker(subject, kinds), named(list_images(paths))
    names = dict(zip(files, short_names(list(files.values())), strict=True))
    images: list[dict[str, Any]] = []
    room, left_out = looking.LARGEST, 0
    for name, _, seen, shown in views(files, subject, tile, unreadable):
        if room >= 0:
            images.append(looking.of_image(names[name], shown, look(seen), model.embedding, size))
            room -= len(str(images[-1]))
        if room < 0:  # the others are read all the same, so that what is damaged is named
            left_out += 1
    if not images:
        raise DataError("no image could be read: there is nothing to show")
    if room < 0:
        images.pop()
    if not images:
        limit = f"{looking.LARGEST / 2**20:.0f} MiB"
        raise ConfigError(f"one image makes a page of more than {limit}; give a smaller --tile or --image_size")
    if "attention" in images[0] and (why := _later_blocks(model, len(images[0]["attention"]))):
        missing["later blocks"] = why
    stages = reductions.stage_names(model, size) if "reduction" in kinds else []
    shared = looking.common(model, size, tile, stages, missing)
    content = looking.write(about, shared, images, left_out).encode()
    path = os.path.join(output, PAGE)
    with named_failures(f"write {path}", "give another --output"):
        if not is_remote(output):
            os.makedirs(absolute(output), exist_ok=True)
        write_bytes(open_path(path), content)
    return Page(path, len(images), left_out, len(content))


def what_is_missing(model: Body, size: int) -> dict[str, str]:
    """{what of a model cannot be shown, of images with a side of `size` pixels: why}."""
    checks: dict[str, Callable[[], Any]] = {
        "super_tokens": lambda: check_super_tokens(model, size, affinities=False),
        "affinities": lambda: check_super_tokens(model, size, affinities=True),
        "attention": lambda: check_class_attention(model, size),
        "reduction": lambda: reductions.stage_names(model, size),
    }
    missing: dict[str, str] = {}
    for kind, check in checks.items():
        try:
            check()
        except ConfigError as error:
            cause = str(error).partition("; ")[0]  # what to do about it is for the command line
            if cause not in missing.values():
                missing[kind] = cause
    return missing


def _later_blocks(model: Body, shown: int) -> str:
    """Why there is no attention of the blocks behind the first `shown`; "" if there are none."""
    depth = getattr(model, "depth", 0)
    if not getattr(model, "reduction", None) or shown >= depth:
        return ""
    return f"the attention of the blocks from {shown} on: their tokens are reduced and lie in no grid"
