"""Token reductions, a file each, and the table that finds them by name.

A reduction is a linen module that a body of plain blocks calls in the blocks it names, once for each a module of its
own. What the body asks of it:

  blocks                           field: indices of the blocks that reduce, counted from 0; None: all
  stage                            optional field, no option: which of its blocks this module acts in, counted from 0
  stages                           optional field, no option: how many blocks it has
  needs                            class attribute: what attention is to give, of "query", "key", "value" (each
                                   [B, N, A, E]) and "weights" [B, A, N, N]; what nobody needs is never computed
  needs_class_token                class attribute: whether it must be refused where there is no class token
  before                           optional class attribute: True: it acts before its blocks, which must not be the
                                   first, and what it needs is the attention of the block before. Otherwise it acts
                                   within them, between attention and MLP.
  keeps_places                     optional class attribute: True: each token that it leaves is one that entered, with
                                   its `places` (`Tokens.select` keeps them), or one without a place, with (0, 0).
                                   Otherwise, as where tokens are merged, it is refused with rotary positions
  check()                          optional: raises ConfigError if its options cannot work
  counts(grid, stages)             optional: how many image tokens there are after each of its blocks, where they lie in
                                   a grid (h, w) at first; raises ConfigError if none would be left
  at_epoch(epoch)                  optional: the module to train with after `epoch` passes over the training images,
                                   itself or one with another `keep_rate`; at most 8 different ones, for each is
                                   compiled. Evaluation uses the module as it is
  __call__(tokens, given, *, train)  -> Tokens, fewer of them or masked; `given` is {name: array} of what it needs

Shapes are static: a method that keeps a number of tokens that differs from image to image masks instead. A reduction
that merges tokens sets `sizes`; attention then counts each as often as the tokens that it stands for. One that takes
tokens out of their grid sets `grid` to None. One that drops none in training, where a gradient is to reach its
decisions, sets `policy`. Keep rates are shares of `tokens.initial`.

What a reduction may leave for others, see `reduction.sow_assignment` and `reduction.sow_scalar`:

  "assignment" of "intermediates"  int32 [B, n]: the image token that each of its n image tokens went to, -1 for none;
                                   `stce visualize` draws it
  NAME of "losses"                 scalar: added to the training loss, which is logged with it
  NAME of "metrics"                [B]: its mean is logged as NAME, in training and evaluation; that of several modules
                                   under one name is averaged

Every field but `stage` and `stages` is an option of its own, set by `create_model`, or in a config in the section
`model.reduction.NAME`. A new reduction is one new file here and one line in the table.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from jaxtyping import Array, Float

from stce_jax.models.reductions.ats import ATS
from stce_jax.models.reductions.dpcknn import DPCKNN
from stce_jax.models.reductions.dynamicvit import DynamicViT
from stce_jax.models.reductions.evit import EViT
from stce_jax.models.reductions.kmedoids import KMedoids
from stce_jax.models.reductions.patchmerger import PatchMerger
from stce_jax.models.reductions.pattern import Pattern
from stce_jax.models.reductions.sinkhorn import Sinkhorn
from stce_jax.models.reductions.sit import SiT
from stce_jax.models.reductions.tome import ToMe
from stce_jax.models.reductions.topk import TopK
from stce_jax.models.tokens import Tokens

__all__ = [
    "ATS",
    "DPCKNN",
    "REDUCTIONS",
    "DynamicViT",
    "EViT",
    "KMedoids",
    "PatchMerger",
    "Pattern",
    "Reduction",
    "SiT",
    "Sinkhorn",
    "ToMe",
    "TopK",
    "acts_before",
    "counts_of",
]


class Reduction(Protocol):
    """The protocol above, for type checkers."""

    blocks: tuple[int, ...] | None
    needs: ClassVar[tuple[str, ...]]
    needs_class_token: ClassVar[bool]

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens: ...

    def clone(self, *, parent: Any = None, **options: Any) -> "Reduction": ...


def acts_before(reduction: Reduction | None) -> bool:
    """Whether a reduction acts before its blocks, not within them."""
    return bool(getattr(reduction, "before", False))


def counts_of(reduction: Reduction | None, grid: tuple[int, int], stages: int) -> list[int]:
    """How many image tokens there are after each block of a reduction; as many as before where it does not say.

    Args:
      reduction: its module, or None.
      grid: (h, w) in which the image tokens lie at first.
      stages: number of its blocks.

    Raises:
      ConfigError: none would be left.
    """
    module: Any = reduction
    return module.counts(grid, stages) if hasattr(module, "counts") else [math.prod(grid)] * stages


REDUCTIONS: dict[str, Any] = {  # name -> linen module class
    "topk": TopK,
    "evit": EViT,
    "tome": ToMe,
    "kmedoids": KMedoids,
    "dpcknn": DPCKNN,
    "dynamicvit": DynamicViT,
    "sit": SiT,
    "patchmerger": PatchMerger,
    "sinkhorn": Sinkhorn,
    "pattern": Pattern,
    "ats": ATS,
}
