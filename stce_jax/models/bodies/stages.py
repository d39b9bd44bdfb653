"""What bodies of several stages share, whose tokens lie in a map that shrinks from stage to stage.

Shape letters: B batch, H W height and width of an image or of features, C channels, D width of the last tokens.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_range, check_whole, shown
from stce_jax.models.layers import drop_path_scales, linear
from stce_jax.models.ops.precision import widened
from stce_jax.models.tokens import Tokens, check_tokens

MOST_STAGES = 8
LARGEST_TRIED = 1024  # pixels, up to which `refuse_small` looks for a size that works
Check = Callable[[str, Any], None]  # of (what it is called, an entry): raises ConfigError


def whole(lowest: int, highest: int) -> Check:
    """The check of a whole number in this range."""
    return lambda what, entry: check_whole(what, entry, lowest, highest)


# Of the entries that the memory grows with: above the largest published models, below slips of a digit.
WIDTHS, DEPTHS, HEADS = whole(1, 16_384), whole(1, 1024), whole(1, 1024)


def odd(highest: int) -> Check:
    """The check of an odd number up to this one."""

    def check(what: str, entry: Any) -> None:
        check_whole(what, entry, 1, highest)
        if entry % 2 == 0:
            raise ConfigError(f"{what} is {shown(entry)}; it must be odd, such as {entry + 1}")

    return check


def share(what: str, entry: Any) -> None:
    """The check of a number in 0..1."""
    check_range(what, entry, 0, 1)


class StagedBody(nn.Module):
    """The protocol of a body, see `bodies`, but for `tokens` and `unshaped_options`, which each body has of its own.

    A body sets `self.head = self.make_head()` in `setup`, and has the option `widths`, an entry for each stage.

    Attributes:
      embedding: a module of `embeddings`; its tokens are as wide as the first stage.
      num_classes: classes of the linear head; 0 leaves it out and returns the pooled features [B, D].
      image_size: (height, width) in pixels.
      drop_path: stochastic depth rate of the last block, 0 <= rate < 1; needs the rng "dropout" in training.
      dtype: dtype of the computation; parameters and statistics are float32.
      remat: recompute each block in the backward pass instead of keeping its activations; `create_model` has the
        embedding do so with each of its modules of convolutions.
    """

    embedding: Any
    num_classes: int
    image_size: tuple[int, int] = (224, 224)
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    STRIDE: ClassVar[int] = 4

    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Float[Array, "B classes"]:
        """Normalised images -> logits (or pooled features without classes), float32."""
        outputs = self.pool(self.tokens(images, train))
        outputs = self.head(self.before_head(outputs, train)) if self.num_classes else outputs
        return widened(outputs)

    def features(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Float[Array, "B D"]:
        """Normalised images -> what the head reads, [B, D] float32."""
        features = self.pool(self.tokens(images, train))
        return widened(features)

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens, after the last norm."""
        raise NotImplementedError

    def pool(self, tokens: Tokens) -> Float[Array, "B D"]:
        """What the head reads of the tokens: their mean, unless a body says otherwise."""
        return tokens.pooled_mean()

    def before_head(self, pooled: Float[Array, "B D"], train: bool | None) -> Float[Array, "B D"]:
        """What the head alone gets: the pooled features, unless a body drops some of them in training."""
        del train
        return pooled

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How the last stage's tokens of an image of this size lie; ConfigError if it cannot be cut."""
        return self.stage_grids(height, width)[-1]

    def stage_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """The same for every stage."""
        grids = [self.embedding.grid(height, width)]
        for _ in self.widths[1:]:
            grids.append(self.downsampled(*grids[-1]))
        return grids

    @property
    def embedding_width(self) -> int:
        """How wide the embedding's tokens are: as the first stage, unless a body says otherwise."""
        return int(self.widths[0])

    def downsampled(self, rows: int, columns: int) -> tuple[int, int]:
        """The sides of the next stage's map: half, rounded up, unless a body says otherwise."""
        return -(-rows // 2), -(-columns // 2)

    def fit_weights(
        self, found: dict[str, Any], expected: dict[str, Any], old_grid: tuple[int, int] | None
    ) -> tuple[dict[str, Any], str]:
        """There is one form alone, for any size of images: as they are. Bodies with tables of positions differ."""
        del expected, old_grid
        return found, ""

    def make_head(self) -> nn.Module | None:
        return linear(self.num_classes, self.dtype) if self.num_classes else None

    def check_stages(self, checks: Mapping[str, Check], divided: str = "widths") -> None:
        """Raises ConfigError unless each of these options is a list with an entry for each stage that passes its check,
        and heads divide the widths, or another option with an entry for each stage."""
        for option, check in checks.items():
            entries = getattr(self, option)
            if not isinstance(entries, tuple | list) or not 0 < len(entries) <= MOST_STAGES:
                raise ConfigError(
                    f"model option {option} is {shown(entries)}; it must be a list with an entry for each stage, "
                    f"at most {MOST_STAGES}"
                )
            if len(entries) != len(self.widths):
                raise ConfigError(
                    f"model option {option} has {len(entries)} entries, widths {len(self.widths)}; give both one for "
                    "each stage"
                )
            for entry in entries:
                check(f"an entry of model option {option}", entry)
        if "heads" in checks:
            for width, heads in zip(getattr(self, divided), self.heads, strict=True):
                if width % heads:
                    raise ConfigError(f"a stage of width {width} cannot be divided among {heads} heads")
        check_range("model option drop_path", self.drop_path, 0, 1, below=True)

    def embed(self, images: Float[Array, "B H W 3"], train: bool) -> Float[Array, "B h w C"]:
        """The embedding's tokens as the first stage's map."""
        chex.assert_shape(images, (None, None, None, 3))
        batch, height, width, _ = images.shape
        rows, columns = self.embedding.grid(height, width)
        tokens = self.embedding(images.astype(self.dtype), train=train)
        check_tokens("embedding", tokens, (batch, rows * columns, self.embedding_width), leading=0)
        return tokens.values.reshape(batch, rows, columns, self.embedding_width)

    def branch_scales(self, batch: int, depth: int, train: bool) -> list[Float[Array, "2 B 1 1 1"] | None]:
        """What stochastic depth multiplies the two branches of each of `depth` blocks with; None: nothing."""
        if not train or not self.drop_path:
            return [None] * depth
        scales: jax.Array = drop_path_scales(self.make_rng("dropout"), self.drop_path, depth, batch)
        return list(scales[..., None])

    def run_stages(
        self,
        features: Float[Array, "B H W C"],
        depths: Sequence[int],
        downsampling: Sequence[Callable[[Any], Any]],
        train: bool,
    ) -> Float[Array, "B h w D"]:
        """The last stage's map of the first's, by `self.blocks`, called as block(map, scales of its branches).

        Args:
          features: the first stage's map.
          depths: number of blocks of each stage.
          downsampling: what makes the next stage's map, between one stage and the next.
          train: whether branches are dropped.
        """
        scales = self.branch_scales(features.shape[0], len(self.blocks), train)
        for stage, numbers in enumerate(stage_ranges(depths)):
            if stage:
                features = downsampling[stage - 1](features)
            for index in numbers:
                features = self.blocks[index](features, scales[index])
        return features


def stage_ranges(depths: Sequence[int]) -> list[range]:
    """The numbers of each stage's blocks, counted through all stages."""
    ends = list(itertools.accumulate(depths))
    return [range(end - depth, end) for end, depth in zip(ends, depths, strict=True)]


def as_tokens(features: Float[Array, "B h w D"]) -> Tokens:
    """A map as tokens, row by row."""
    batch, rows, columns, width = features.shape
    return Tokens(features.reshape(batch, rows * columns, width), grid=(rows, columns))


def add_branch(
    features: Float[Array, "B *axes C"],
    branch: Float[Array, "B *axes C"],
    scales: Float[Array, "2 *ones"] | None,
    index: int,
) -> Float[Array, "B *axes C"]:
    """The residual connection of the first or second branch of a block."""
    return features + (branch if scales is None else branch * scales[index].astype(branch.dtype))


def refuse_small(body: StagedBody, height: int, width: int, fits: Callable[[int, int], bool]) -> None:
    """Raises ConfigError, which names a size that works, unless the stages of a body can take an image of this size.

    Args:
      body, height, width: whose image, in pixels.
      fits: whether an image of (height, width) leaves each stage enough; may raise ConfigError, which means no.
    """
    if fits(height, width):
        return

    def works(side: int) -> bool:
        try:
            return fits(side, side)
        except ConfigError:  # the embedding cannot cut it
            return False

    side = next((side for side in range(1, LARGEST_TRIED) if works(side)), None)
    remedy = "none would be large enough; take fewer stages" if side is None else f"{side}x{side} would work"
    raise ConfigError(f"an image of {height}x{width} pixels is too small for {len(body.widths)} stages; {remedy}")
