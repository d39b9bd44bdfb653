"""What `config.plan` lets a run of so many minutes choose from: image size and model, cheapest first.

A larger model on larger images is better only where it sees the images often enough; each candidate says how many
epochs it wants. The numbers of epochs are a first guess, not a measurement; a search that measures them changes this
table alone.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    """An image size and a model.

    Attributes:
      epochs: passes over the training images below which a cheaper candidate is taken; of the first: 0.
      keys: what it sets in a config; every candidate of a list sets the same keys.
    """

    epochs: float
    keys: Mapping[str, Any]


def _stce(side: int, sides: tuple[int, ...], width: int, depth: int, heads: int, stem: int) -> dict[str, Any]:
    """Keys of an STCE-ViT of 8x8 tokens: its embedding halves images of 64 pixels three times, of 32 twice."""
    strides = (2, 2, 1) if side >= 64 else (2, 1)
    return {
        "image_size": side,
        "progressive_sizes": sides,
        "model.name": "vit_ti_stce",
        "model.body.vit.width": width,
        "model.body.vit.depth": depth,
        "model.body.vit.heads": heads,
        "model.body.vit.mlp_dim": 3 * width,
        "model.embedding.stce.stem_widths": tuple(stem * 2**number for number in range(len(strides))),
        "model.embedding.stce.stem_strides": strides,
        "model.embedding.stce.cell": (2, 2),
    }


CANDIDATES: dict[str, tuple[Candidate, ...]] = {
    "class_folders": (
        Candidate(0, _stce(32, (), width=128, depth=4, heads=4, stem=32)),
        Candidate(30, _stce(64, (32, 48, 64), width=192, depth=6, heads=6, stem=24)),
        Candidate(60, _stce(64, (32, 48, 64), width=256, depth=8, heads=8, stem=32)),
    ),
}
