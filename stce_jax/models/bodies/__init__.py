"""Bodies, a file each, and the table that finds them by name.

A body is a linen module from images to logits. What every verb knows of a model is this protocol, and nothing else:

  embedding, num_classes, image_size, dtype   fields that the model is built with; image_size is (height, width)
  reduction                        field, only of a body that takes token reductions
  axis_name                        field, only of a body with BatchNorm: as flax.linen.BatchNorm's
  SIZES                            optional class attribute: {size: {option: value}}, the sizes that models are named by
  EMBEDDING                        optional class attribute: the embedding that the body comes with. Its models are then
                                   named BODY_SIZE, too, and no body's models are named by that embedding
  STRIDE                           optional class attribute: pixels between two tokens of the embeddings that it is made
                                   for, a power of two, 16 if missing; other embeddings' options follow it
  fused_kernels                    optional attribute: {name of a linear layer: how many matrices lie side by side
                                   in its kernel}, which Muon treats each by itself; query, key and value of "qkv" if
                                   missing
  __call__(images, *, train)       -> logits [B, classes] float32; with 0 classes the pooled features
  features(images, *, train)       -> what the head reads, pooled [B, D] float32
  tokens(images, *, train)         -> `Tokens` after the last norm, leading tokens (a class token) first
  grid(height, width)              -> (h, w), how the last image tokens of such an image lie
  check()                          optional: raises ConfigError if its options cannot work
  at_epoch(epoch)                  optional: -> the body to train with at an epoch of the run, see `at_epoch`
  attention_grid(height, width)    optional: -> ((h, w), n), how the keys lie that the class token attends to, if not as
                                   the tokens of `grid`, and how many of the embedding's tokens apart
  unshaped_options()               -> {option: value} of those that change the logits and no parameter's shape
  fit_weights(found, expected, old_grid)
                                   -> (arrays, note): weights of the same body in another form brought to this one's

Parameters lie under names that optimizers go by (`recipe.muon`, `depths`): "embedding", "blocks_I" or, stacked,
"blocks", "downsampling_S", "halving_S" or "merging_S" behind stage S, "norm", "head".
Blocks sow their attention weights [B, A, N, keys] as "attention", which `stce visualize` draws where there are any.
Every field but those above is an option, set by `create_model`, or in a config in the section `model.body.NAME`.
The embedding's tokens are as wide as the option `width` says, or the first of `widths`, if there are stages.
A new body is one new file here, one line in the table, and its presets in `factory`.
"""

from typing import Any, Protocol

from jaxtyping import Array, Float, Shaped

from stce_jax.models.bodies.cmt import CMT
from stce_jax.models.bodies.cvt import CvT
from stce_jax.models.bodies.dat import DAT
from stce_jax.models.bodies.datpp import DATPlus
from stce_jax.models.bodies.deit import DeiT
from stce_jax.models.bodies.focal import Focal, FocalConv
from stce_jax.models.bodies.mobilevit import MobileViT
from stce_jax.models.bodies.svit import SViT
from stce_jax.models.bodies.swin import Swin
from stce_jax.models.bodies.vit import VisionTransformer
from stce_jax.models.tokens import Tokens

BODIES: dict[str, Any] = {  # name -> linen module class
    "vit": VisionTransformer,
    "deit": DeiT,
    "swin": Swin,
    "cvt": CvT,
    "cmt": CMT,
    "mobilevit": MobileViT,
    "focal": Focal,
    "focal_conv": FocalConv,
    "dat": DAT,
    "datpp": DATPlus,
    "svit": SViT,
}


class Body(Protocol):
    """The protocol above, for type checkers."""

    embedding: Any
    num_classes: int
    image_size: tuple[int, int]
    dtype: Any

    def init(self, rngs: Any, images: Any, *, train: bool) -> Any: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    def __call__(self, images: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B classes"]: ...

    def features(self, images: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B D"]: ...

    def tokens(self, images: Float[Array, "B H W 3"], *, train: bool) -> Tokens: ...

    def grid(self, height: int, width: int) -> tuple[int, int]: ...

    def unshaped_options(self) -> dict[str, Any]: ...

    def fit_weights(
        self, found: dict[str, Any], expected: dict[str, Any], old_grid: tuple[int, int] | None
    ) -> tuple[dict[str, Shaped[Array, "..."]], str]: ...


def at_epoch(body: Body, epoch: float) -> Body:
    """The body to train with after `epoch` passes over the training images, by its own or its reduction's schedule.

    There may be few different ones, for each is compiled; their variables are the same. Without a schedule: `body`.
    """
    module: Any = body
    if hasattr(module, "at_epoch"):
        return module.at_epoch(epoch)
    reduction: Any = getattr(module, "reduction", None)
    scheduled = reduction.at_epoch(epoch) if hasattr(reduction, "at_epoch") else reduction
    return body if scheduled is reduction else module.clone(reduction=scheduled)
