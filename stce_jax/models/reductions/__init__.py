"""Token reductions, a file each, and the table that finds them by name.

A reduction is a linen module that a body of plain blocks calls between attention and MLP of the blocks it names. What
the body asks of it:

  blocks                           field: indices of the blocks that reduce, counted from 0; None: all
  needs                            class attribute: what attention is to give, of "query", "key", "value" (each
                                   [B, N, A, E]) and "weights" [B, A, N, N]; what nobody needs is never computed
  needs_class_token                class attribute: whether it must be refused where there is no class token
  check()                          optional: raises ConfigError if its options cannot work
  __call__(tokens, given, *, train)  -> Tokens, fewer of them or masked; `given` is {name: array} of what it needs

Shapes are static: a method that keeps a number of tokens that differs from image to image masks instead. A reduction
that merges tokens sets `sizes`; attention then counts each as often as the tokens that it stands for. One that takes
tokens out of their grid sets `grid` to None.

Every field but `blocks` is an option of its own, set by `create_model`, or in a config in the section
`model.reduction.NAME`. A new reduction is one new file here and one line in the table.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from jaxtyping import Array, Float

from stce_jax.models.tokens import Tokens


class Reduction(Protocol):
    """The protocol above, for type checkers."""

    blocks: tuple[int, ...] | None
    needs: ClassVar[tuple[str, ...]]
    needs_class_token: ClassVar[bool]

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens: ...


REDUCTIONS: dict[str, Any] = {}  # name -> linen module class
