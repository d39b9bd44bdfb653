"""Which PyTorch pieces the blocks of a vision transformer are, with a token reduction or without.

What a reduction decides by the number of tokens is decided here: a file is for images of one size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from stce_jax.convert.torch_source.call import Call
from stce_jax.errors import ConfigError
from stce_jax.models.reductions import acts_before, counts_of
from stce_jax.models.reductions.ats import ATS, sampling_points
from stce_jax.models.reductions.dpcknn import DPCKNN, drawn_noise
from stce_jax.models.reductions.dynamicvit import DynamicViT
from stce_jax.models.reductions.evit import EViT
from stce_jax.models.reductions.kmedoids import KMedoids
from stce_jax.models.reductions.patchmerger import PatchMerger
from stce_jax.models.reductions.pattern import Pattern, distance_map, falling_thresholds, nearest_threshold
from stce_jax.models.reductions.reduction import kept_counts
from stce_jax.models.reductions.sinkhorn import Sinkhorn
from stce_jax.models.reductions.sit import SiT
from stce_jax.models.reductions.tome import ToMe
from stce_jax.models.reductions.topk import TopK


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a reduction acts.

    Attributes:
      grid: (h, w) of the image tokens at first.
      stage, stages: which of its blocks, and how many there are.
      before, after: how many image tokens come, and are left; of ATS the most.
      width: D.
      leading: tokens in front.
    """

    grid: tuple[int, int]
    stage: int
    stages: int
    before: int
    after: int
    width: int
    leading: int

    def options(self, *names: str, **others: Any) -> dict[str, Any]:
        """Those of a piece: `count` is how many tokens are left, others are called as here."""
        own = {"count": self.after, **dataclasses.asdict(self)}
        return {**{name: own[name] for name in names}, **others, "leading": self.leading}


def carries_sizes(reduction: Any) -> bool:
    """Whether tokens carry with them how many first ones each stands for, or whether they are real."""
    return isinstance(reduction, ToMe | ATS)


def blocks(model: Any) -> list[Call]:
    """The calls of a vision transformer's blocks; ConfigError if its reduction has no piece."""
    options = {"width": model.width, "heads": model.heads, "hidden": model.mlp_dim}
    plain, reducing = _kinds(model.reduction)
    made = [Call(plain, options) for _ in range(model.depth)]
    for index, call in reductions(model).items():
        made[index] = Call(reducing, {**options, "reduction": call})
    return made


def reductions(model: Any) -> dict[int, Call]:
    """{block whose module it is: the call of a reduction's piece}; where it does nothing there is none."""
    reduction: Any = model.reduction
    if reduction is None:
        return {}
    if type(reduction) not in REDUCTIONS:
        name = type(reduction).__name__
        raise ConfigError(f"there is no PyTorch form of the token reduction {name}; take another --format")
    ahead = int(acts_before(reduction))
    acting = sorted(range(ahead, model.depth) if reduction.blocks is None else reduction.blocks)
    grid = model.embedding.grid(*model.image_size)
    counts, before = counts_of(reduction, grid, len(acting)), math.prod(grid)
    found = {}
    for stage, block in enumerate(acting):
        place = Place(grid, stage, len(acting), before, counts[stage], model.width, model.leading)
        if (call := REDUCTIONS[type(reduction)](reduction, place)) is not None:
            found[block - ahead] = call
        before = min(before, counts[stage])
    return found


def noises(model: Any) -> dict[str, np.ndarray]:
    """{name: array} of what a reduction draws always alike in evaluation; no parameters."""
    calls = {index: call for index, call in reductions(model).items() if call.name in ("DPCKNN", "EqualDPCKNN")}
    return {
        f"blocks.{index}.reduction.noise": np.asarray(drawn_noise(None, (1, call.options["tokens"]), np.float32))[0]
        for index, call in calls.items()
    }


def _kinds(reduction: Any) -> tuple[str, str]:
    """The names of a block without and with a reduction."""
    if carries_sizes(reduction):
        prefix = "" if getattr(reduction, "proportional", True) else "Unproportional"
        return f"{prefix}SizedBlock", f"{prefix}SizedReducingBlock"
    if isinstance(reduction, KMedoids) and not reduction.equal_weight:
        return "Block", "WeighingBlockBeforeReduction"
    return "Block", "BlockBeforeReduction" if acts_before(reduction) else "ReducingBlock"


def _topk(_: TopK, place: Place) -> Call | None:
    return Call("TopK", place.options("count")) if place.after < place.before else None


def _evit(module: EViT, place: Place) -> Call | None:
    kept = module.kept(place.before, math.prod(place.grid), place.stage)
    if kept == place.before:
        return None
    return Call("EViT" if module.fuse else "TopK", place.options(count=kept))


def _tome(_: ToMe, place: Place) -> Call | None:
    merged = place.before - place.after
    return Call("ToMe", place.options(count=merged)) if merged else None


def _ats(module: ATS, place: Place) -> Call:
    samples = kept_counts(module.keep_rate, math.prod(place.grid), place.stage + 1)[-1] + 1
    points = len(sampling_points(samples))
    return Call("ATS", place.options(samples=samples, points=points, places=min(points, place.before)))


def _kmedoids(module: KMedoids, place: Place) -> Call | None:
    name = "EqualKMedoids" if module.equal_weight else "KMedoids"
    options = place.options("count", iterations=module.medoid_iterations)
    return Call(name, options) if place.after < place.before else None


def _dpcknn(module: DPCKNN, place: Place) -> Call | None:
    options = place.options("count", tokens=place.before, neighbours=min(module.neighbours, place.before))
    if module.equal_weight:
        return Call("EqualDPCKNN", options) if place.after < place.before else None
    return Call("DPCKNN", {"width": place.width, **options})  # has parameters where it does nothing, too


def _dynamicvit(_: DynamicViT, place: Place) -> Call:
    return Call("DynamicViT", place.options("width", "count"))


def _sit(_: SiT, place: Place) -> Call:
    return Call("SiT", place.options("width", "count"))


def _patchmerger(_: PatchMerger, place: Place) -> Call:
    return Call("PatchMerger", place.options("width", "count"))


def _sinkhorn(module: Sinkhorn, place: Place) -> Call:
    return Call("Sinkhorn", place.options("width", "count", epsilon=float(module.epsilon), rounds=module.rounds))


def _pattern(module: Pattern, place: Place) -> Call | None:
    distances = distance_map(place.grid, module.distance)
    if module.contiguous:
        radii = falling_thresholds(distances, module.min_radius, place.stages)
    else:
        counts = kept_counts(module.keep_rate, distances.size, place.stages)
        radii = [nearest_threshold(distances, count) for count in counts]
    falling = np.minimum.accumulate([float(distances.max()), *radii]).tolist()
    before, radius = falling[place.stage : place.stage + 2]
    options = place.options("grid", distance=module.distance, inside=before, radius=radius)
    return Call("Pattern", options) if place.after < place.before else None


REDUCTIONS: dict[Any, Callable[[Any, Place], Call | None]] = {  # linen class -> call of its piece
    TopK: _topk,
    EViT: _evit,
    ToMe: _tome,
    ATS: _ats,
    KMedoids: _kmedoids,
    DPCKNN: _dpcknn,
    DynamicViT: _dynamicvit,
    SiT: _sit,
    PatchMerger: _patchmerger,
    Sinkhorn: _sinkhorn,
    Pattern: _pattern,
}
