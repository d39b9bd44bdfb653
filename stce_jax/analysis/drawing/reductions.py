"""What a token reduction kept, merged or dropped, block by block, on the image.

Everything is read from the "assignment" that each stage of a reduction sows, see `models.reductions`.

Shape letters: B batch, S side of the image that the model sees, Y side of a picture in pixels, N tokens of the image's
grid h w, n those that a stage meets, D model width.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from stce_jax.analysis.drawing import introspection, pictures
from stce_jax.errors import ConfigError
from stce_jax.models.bodies import Body
from stce_jax.models.reductions import acts_before
from stce_jax.training.state import abstract_variables

DIMMED = 0.25  # of the brightness of a place whose token was dropped
NO_REDUCTION = (
    "no block of the model reduces its tokens and says where they went; give a run whose config.model.reduction has a "
    "name and a keep rate below 1"
)

Variables = Mapping[str, Any]


def stage_names(model: Body, image_size: int) -> list[str]:
    """What to call each stage that reduces, in order, such as "block 3"; blocks are counted from 0, as in the config.

    Raises:
      ConfigError: there is none.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = abstract_variables(model, image_size)
    sown = jax.eval_shape(functools.partial(_sown, model), variables, images)[0]
    paths = _in_order(sown)
    if not paths or sown[paths[0]].shape[1] != math.prod(model.embedding.grid(image_size, image_size)):
        raise ConfigError(NO_REDUCTION)
    return [_name(path, acts_before(getattr(model, "reduction", None))) for path in paths]


def is_drawable(model: Body, image_size: int) -> bool:
    """Whether there is a stage that reduces and says where tokens went."""
    try:
        stage_names(model, image_size)
    except ConfigError:
        return False
    return True


def assignments(
    model: Body, variables: Variables, images: Float[Array, "B S S 3"]
) -> tuple[list[Int[Array, "B n"]], Float[Array, "B M D"]]:
    """(the assignment of each stage of `stage_names`, the last tokens).

    Args:
      model: a body.
      variables: its variables.
      images: normalised.
    """
    sown, values = _sown(model, variables, images)
    return [sown[path] for path in _in_order(sown)], values


def compose(stages: Sequence[Int[np.ndarray, "... n"]]) -> list[Int[np.ndarray, "... N"]]:
    """Where each of the first tokens is after each stage.

    Args:
      stages: assignments in order: the token after the stage that each of its tokens went to, -1 for none.

    Returns:
      For each stage the token that each first one has gone to, -1 once it was dropped.
    """
    places: list[np.ndarray] = []
    for stage in map(np.asarray, stages):
        if not places:
            places.append(stage)
            continue
        before = places[-1]
        places.append(np.where(before < 0, -1, np.take_along_axis(stage, np.maximum(before, 0), axis=-1)))
    return places


def merged(places: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """For each first token how many have gone to the same one as it; 0 if it was dropped."""
    kept = places >= 0
    sizes = np.bincount(places[kept], minlength=1)
    return np.where(kept, sizes[np.maximum(places, 0)], 0)


def counts(places: Int[np.ndarray, "N"]) -> dict[str, int]:
    """{"tokens": that are left, "dropped", "merged": first tokens that were}, see `compose` for `places`."""
    sizes = merged(places)
    left = len(np.unique(places[places >= 0]))
    return {"tokens": left, "dropped": int((sizes == 0).sum()), "merged": int((sizes > 1).sum())}


def reduction_sheet(
    image: UInt8[np.ndarray, "Y Y 3"],
    stages: Sequence[Int[np.ndarray, "n"]],
    names: Sequence[str],
    embedding: nn.Module,
    side: int,
) -> Image.Image:
    """What became of each place of the image: dropped ones are dark, merged ones have one outline and one colour.

    Args:
      image: what the model sees, at any resolution.
      stages: of `assignments`, of this image.
      names: of `stage_names`.
      embedding: of the model.
      side: S.

    Returns:
      The image above its tokens in their mean colours; then the same of each stage. Where new tokens are made of all
      old ones, a place is of the token that takes most of it, and tokens that take most of none are not seen.
    """
    rows, columns = introspection.nearest_tokens(embedding, side, len(image))  # [Y] each
    module: Any = embedding
    grid = module.grid(side, side)
    pixels = np.arange(grid[0] * grid[1]).reshape(grid)[rows[:, None], columns]  # [Y, Y]: the first token of each
    columns_of_tiles = [[(image, "the image"), (pictures.mean_colours(image, pixels), f"{grid[0] * grid[1]} tokens")]]
    for name, places in zip(names, compose(stages), strict=True):
        sizes, count = merged(places), counts(places)
        groups = np.where(sizes > 1, places + 1, np.minimum(sizes, 1) - 1)  # -1 dropped, 0 alone, else its group
        dropped = (sizes == 0)[pixels]
        above = pictures.draw_boundaries(_dimmed(image, dropped), groups[pixels])
        below = np.where(
            dropped[:, :, None], _dimmed(image, dropped), pictures.mean_colours(image, (places + 1)[pixels])
        )
        caption = f"{count['dropped']} dropped, {count['merged']} merged"
        columns_of_tiles.append([(above, f"{name}: {count['tokens']} tokens"), (below, caption)])
    lines = max(1, round(np.sqrt(len(columns_of_tiles) / 6)))
    width = -(-len(columns_of_tiles) // lines)
    tiles = []
    for first in range(0, len(columns_of_tiles), width):
        tiles += [list(row) for row in zip(*columns_of_tiles[first : first + width], strict=True)]
    return pictures.sheet(tiles)


def _dimmed(image: UInt8[np.ndarray, "Y Y 3"], where: np.ndarray) -> UInt8[np.ndarray, "Y Y 3"]:
    return np.where(where[:, :, None], np.round(DIMMED * image), image).astype(np.uint8)


def _sown(model: Body, variables: Variables, images: Float[Array, "B S S 3"]) -> tuple[dict[str, Array], Array]:
    """({path: assignment}, the last tokens)."""
    tokens, left = model.apply(variables, images, train=False, mutable="intermediates", method="tokens")
    flat = traverse_util.flatten_dict(left.get("intermediates", {}), sep="/")
    found = {path: arrays[0] for path, arrays in flat.items() if path.endswith("/assignment")}
    return found, tokens.values


def _in_order(paths: Mapping[str, Any]) -> list[str]:
    return sorted(paths, key=introspection.numbers_as_numbers)


def _name(path: str, before: bool) -> str:
    """Of a stage, blocks counted from 0 as in the config: what acts before a block is part of the block before it."""
    if not (numbers := re.findall(r"\d+", path)):
        return path.removesuffix("/assignment")
    return f"before block {int(numbers[-1]) + 1}" if before else f"block {numbers[-1]}"
