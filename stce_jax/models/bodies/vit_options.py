"""What the options of a body of plain blocks can be, and which of them go together."""

from typing import Any

from stce_jax.errors import ConfigError, check_choice, check_range, check_whole
from stce_jax.models.layers import MLPS, NORMS
from stce_jax.models.ops import rotary
from stce_jax.models.reductions import Reduction, acts_before

CHOICES: dict[str, tuple[str, ...]] = {
    "pooling": ("class", "mean"),
    "position_embedding": ("learned", "sincos2d", *rotary.ROTARY),
    "norm": tuple(NORMS),
    "mlp": tuple(MLPS),
}
# Of the options that the memory grows with: above the largest published transformers of images, below slips of a digit.
LARGEST = {"width": 16_384, "depth": 1024, "heads": 1024, "mlp_dim": 65_536}
MOST_REGISTERS = 1024


def check_options(body: Any) -> None:
    """Raises ConfigError if the options of a `VisionTransformer` cannot work."""
    for option, choices in CHOICES.items():
        check_choice(f"model option {option}", getattr(body, option), choices)
    for option, largest in LARGEST.items():
        check_whole(f"model option {option}", getattr(body, option), 1, largest)
    check_whole("model option registers", body.registers, 0, MOST_REGISTERS)
    for option in ("drop_path", "dropout", "patch_dropout"):
        check_range(f"model option {option}", getattr(body, option), 0, 1, below=True)
    check_range("model option layer_scale", body.layer_scale, 0, 1)
    check_range("model option norm_epsilon", body.norm_epsilon, 0, 0.1, above=True)
    if body.width % body.heads:
        raise ConfigError(f"width {body.width} cannot be divided among {body.heads} heads")
    if body.position_embedding == "sincos2d" and body.width % 4:
        raise ConfigError(f"width {body.width} is no multiple of 4, which sincos2d positions need")
    if body.position_embedding in rotary.ROTARY and body.width // body.heads % rotary.MULTIPLE:
        raise ConfigError(
            f"heads of width {body.width // body.heads} are no multiple of {rotary.MULTIPLE}, which "
            f"{body.position_embedding} positions need; give other heads, or another width"
        )
    if body.reduction is not None:
        _check_reduction(body, body.reduction)


def reducing_blocks(reduction: Reduction | None, depth: int) -> tuple[int, ...]:
    """The blocks within which, or before which, a reduction acts, in order."""
    if reduction is None:
        return ()
    if reduction.blocks is None:
        return tuple(range(int(acts_before(reduction)), depth))
    return tuple(sorted(reduction.blocks))


def _check_reduction(body: Any, reduction: Any) -> None:
    if body.scan_layers:
        raise ConfigError("scan_layers needs blocks of one shape, a token reduction changes it; leave one of them")
    if body.patch_dropout:
        raise ConfigError("patch_dropout and a token reduction both take tokens away in training; leave one of them")
    if body.position_embedding in rotary.ROTARY and not getattr(reduction, "keeps_places", False):
        raise ConfigError(
            f"{body.position_embedding} positions need each token's place, and {type(reduction).__name__} makes tokens "
            "that have none; take other positions, or a reduction that drops tokens, such as topk or evit"
        )
    if reduction.needs_class_token and body.pooling != "class":
        raise ConfigError("the reduction reads the class token's attention; with pooling=mean there is none")
    for block in reduction.blocks or ():
        check_whole("each of the reduction's blocks", block, int(acts_before(reduction)), body.depth - 1)
    if len(blocks := reducing_blocks(reduction, body.depth)) != len(set(blocks)):
        raise ConfigError(f"the reduction's blocks are {', '.join(map(str, blocks))}; name each once")
