"""Progressive resizing: a run may train on smaller images first, and ends at `image_size`.

Which size a step has depends on the epoch alone, so that a run that resumes takes up the same. Source: the idea of
fast.ai's entry to DAWNBench (2018) and of EfficientNetV2 (Tan and Le 2021, arXiv 2104.00298).
"""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from stce_jax.errors import ConfigError, check_whole, shown
from stce_jax.models.bodies import Body
from stce_jax.models.factory import LARGEST_SIDE
from stce_jax.paths import first_line
from stce_jax.training.state import abstract_variables
from stce_jax.training.timetable import Timetable

MOST = 16  # entries of the option; each size is compiled
TRIED = 4  # sizes that are tried to name one that works


class Sizes(NamedTuple):
    """The sizes of a run's images, in the order in which they come; picklable.

    Attributes:
      sides: in pixels.
      starts: the number of steps after which each begins; never falling.
    """

    sides: tuple[int, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, sides: tuple[int, ...], timetable: Timetable) -> Self:
        """Sizes with equal shares of a timetable's epochs; equal neighbours are one size with a longer share."""
        starts = [timetable.first_step(timetable.epochs * place / len(sides)) for place in range(len(sides))]
        first = [place for place, side in enumerate(sides) if not place or side != sides[place - 1]]
        return cls(tuple(sides[place] for place in first), tuple(starts[place] for place in first))

    def after(self, steps: int) -> int:
        """The size of the step that follows so many steps."""
        return self.sides[max(0, bisect.bisect_right(self.starts, steps) - 1)]

    def seen_from(self, step: int) -> "Sizes":
        """The same, with steps counted from this one on."""
        return Sizes(self.sides, tuple(start - step for start in self.starts))

    def work(self, steps: int, costs: tuple[float, ...]) -> float:
        """What so many steps cost in all, where a step of each size costs so much."""
        return cost_until(steps, self.starts, costs)

    def starts_from(self, step: int) -> list[int]:
        """This step and the later ones after which another size begins, of sizes that have a step at all."""
        starts = [max(step, start) for start in self.starts]
        return [start for start, end in zip(starts, [*starts[1:], None], strict=True) if start != end]


def cost_until(end: float, starts: Sequence[float], costs: Sequence[float]) -> float:
    """What a run costs from 0 to `end`, in steps or epochs, where one costs so much from each of the starts on."""
    starts = [0, *starts[1:]]
    ends = [*starts[1:], end]
    return sum(cost * max(0, min(last, end) - first) for cost, first, last in zip(costs, starts, ends, strict=True))


def check_sizes(sides: Any, image_size: int) -> None:
    """Raises ConfigError if `config.progressive_sizes` cannot work, whatever the model is."""
    if not isinstance(sides, tuple | list) or len(sides) > MOST:
        raise ConfigError(f"config.progressive_sizes is {shown(sides)}; it must be at most {MOST} sizes, or ()")
    for side in sides:
        check_whole("each of config.progressive_sizes", side, 1, LARGEST_SIDE)
    if sides and (list(sides) != sorted(sides) or sides[-1] != image_size):
        raise ConfigError(
            f"config.progressive_sizes is {shown(tuple(sides))}; sizes must not fall, and the last must be "
            f"config.image_size, {image_size}"
        )


def check_model(model: Body, sides: tuple[int, ...]) -> None:
    """Refuses sizes of images that a model cannot be trained at with the parameters of its own size.

    Raises:
      ConfigError: names the size and the reason, and a size near it that works.
    """
    own = model.image_size[0]
    for side in sorted(set(sides) - {own}):
        if reason := _obstacle(model, side):
            known = [other for other in range(1, own) if _is_cut(model, other)]
            near = sorted(known, key=lambda other: abs(other - side))[:TRIED]
            works = next((other for other in near if not _obstacle(model, other)), None)
            remedy = f"{works} works" if works else f"none but {own} works near it, give config.progressive_sizes=()"
            raise ConfigError(f"config.progressive_sizes: {remedy}; at {side} pixels {reason}")


def _is_cut(model: Body, side: int) -> bool:
    module: Any = model
    try:
        module.grid(side, side)
        if hasattr(module, "token_counts"):
            module.token_counts(side, side)
    except Exception:  # of somebody's module anything
        return False
    return True


def _obstacle(model: Body, side: int) -> str:
    """Why a model's variables cannot be used for images of a size; "" if they can. Nothing is computed."""
    variables = abstract_variables(model, model.image_size[0])
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    mutable = ["batch_stats", "losses", "metrics"]

    def forward(variables: Any, images: Any, key: Any) -> Any:
        return model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=mutable)

    try:
        model.grid(side, side)
        jax.eval_shape(forward, variables, images, key)
    except Exception as error:  # of linen, and of somebody's module, anything
        return f"the model says: {first_line(error)}"
    return ""
