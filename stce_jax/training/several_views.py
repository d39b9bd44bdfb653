"""Test-time augmentation: the mean over several views of each image, in the one program that predicts.

The views are cut on the devices from one square of each image. Their probabilities are averaged, as AlexNet's and
ResNet's ten crops are (Krizhevsky et al. 2012, He et al. 2016): every view counts alike, however large its logits are.

Shape letters: B batch, V views, L side of the square, K classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from stce_jax.errors import ConfigError, shown

KINDS = ("flip", "crops")
FRACTION = 0.875  # of the square's side that a crop covers at most: 224 of 256 pixels

Forward = Callable[[UInt8[Array, "B side side 3"]], tuple[Float[Array, "B K"], dict[str, Float[Array, "B"]]]]
OverViews = Callable[[Forward, UInt8[Array, "B L L 3"]], tuple[Float[Array, "B K"], dict[str, Float[Array, "B"]]]]


class Cuts(NamedTuple):
    """Views of a square.

    Attributes:
      side: of each view, in pixels.
      places: (top, left, 1 where it is mirrored left to right) of each view.
    """

    side: int
    places: tuple[tuple[int, int, int], ...]


def parse(text: str) -> tuple[str, ...]:
    """The kinds of `KINDS` that a text such as "flip,crops" names, in their order; () of "".

    Raises:
      ConfigError: it names another kind, or one twice.
    """
    words = str(text).split(",") if text else []
    if not set(words) <= set(KINDS) or len(set(words)) < len(words):
        raise ConfigError(f"tta is {shown(text)}; it must be flip, crops, or flip,crops for both")
    return tuple(kind for kind in KINDS if kind in words)


def square(kinds: Sequence[str], view: dict[str, Any]) -> dict[str, Any]:
    """The options of `crops.center_crop` for the square that views are cut from.

    For crops it is the central square of the resized image, larger than a view; else the evaluation's view itself.

    Args:
      kinds: of `parse`.
      view: of `preprocessing.view_options`.
    """
    if "crops" not in kinds:
        return view
    return {**view, "size": int(view["size"] / min(view["fraction"], FRACTION)), "fraction": 1.0}


def cuts(kinds: Sequence[str], view: dict[str, Any]) -> Cuts | None:
    """The views: corners and centre for "crops", each also mirrored for "flip"; None without a kind. See `square`."""
    if not kinds:
        return None
    side, room = view["size"], square(kinds, view)["size"] - view["size"]
    middle = round(room / 2)
    corners = [(0, 0), (0, room), (room, 0), (room, room), (middle, middle)] if "crops" in kinds else [(0, 0)]
    mirrored = (0, 1) if "flip" in kinds else (0,)
    return Cuts(side, tuple((top, left, flip) for flip in mirrored for top, left in corners))


def count(kinds: Sequence[str]) -> int:
    """How many views there are of an image."""
    return (5 if "crops" in kinds else 1) * (2 if "flip" in kinds else 1)


def over(
    kinds: Sequence[str], view: dict[str, Any], mean: Callable[[Float[Array, "V B K"]], Float[Array, "B K"]]
) -> OverViews | None:
    """What `make_predict_step` takes as `views`; None without a kind.

    Args:
      kinds: of `parse`.
      view: of `preprocessing.view_options`.
      mean: of all views' logits, see `objectives.Objective.of_views`.
    """
    views = cuts(kinds, view)
    return functools.partial(mean_over, views=views, mean=mean) if views else None


def mean_over(
    forward: Forward,
    images: UInt8[Array, "B L L 3"],
    views: Cuts,
    mean: Callable[[Float[Array, "V B K"]], Float[Array, "B K"]],
) -> tuple[Float[Array, "B K"], dict[str, Float[Array, "B"]]]:
    """(logits of the views' mean probabilities, the views' mean of each metric).

    One view after the other, so that no more activations are held than without.

    Args:
      forward: a view of all images -> (logits, metrics of each image).
      images: the squares.
      views: see `cuts`.
      mean: see `over`.
    """

    def of_view(place: Array) -> Any:
        top, left, mirrored = place
        view = jax.lax.dynamic_slice(images, (0, top, left, 0), (len(images), views.side, views.side, 3))
        return forward(jnp.where(mirrored > 0, view[:, :, ::-1], view))

    logits, metrics = jax.lax.map(of_view, jnp.array(views.places))  # [V, B, K] and [V, B]
    return mean(logits), {name: values.mean(axis=0) for name, values in metrics.items()}
