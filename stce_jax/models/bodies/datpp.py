"""DAT++, the later version of DAT: convolutions in stem and blocks, deformable attention in all stages.

Source: Xia et al. 2023, "DAT++", arXiv 2309.01430, and its published code.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from flax import linen as nn

from stce_jax.models.attentions.deformable import DeformableAttention
from stce_jax.models.attentions.neighbourhood import NeighbourhoodAttention
from stce_jax.models.bodies.dat import DAT, LARGEST_WINDOW
from stce_jax.models.bodies.stages import odd, share
from stce_jax.models.conv_layers import NormedHalving, uniform_initializers


class DATPlus(DAT):
    """`DAT` with a depth-wise convolution before each block and within each MLP, and 3x3 convolutions between stages.

    One more letter of `kinds`: N attends to the square around each place. Positions of samples are those of
    `DeformableAttention.corners`. Images of any size work whose maps leave D samples in at least two rows and columns.

    Beside the attributes of `DAT`:

    Attributes:
      neighbourhoods: side of the square of N in each stage, odd.
      layer_scale: what branches are first multiplied by in each stage, 0..1; 0: no layer scale.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    heads: Sequence[int] = (2, 4, 8, 16)
    kinds: Sequence[str] = ("ND", "NDND", "NDNDNDNDNDNDNDNDND", "DD")
    groups: Sequence[int] = (1, 2, 4, 8)
    strides: Sequence[int] = (8, 4, 2, 1)
    offset_ranges: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    neighbourhoods: Sequence[int] = (7, 7, 7, 7)
    layer_scale: Sequence[float] = (0.0, 0.0, 0.0, 0.0)

    EMBEDDING: ClassVar[str] = "datpp"
    LETTERS: ClassVar[str] = "LSND"
    LEAST_SAMPLES: ClassVar[int] = 2  # as positions are divided by one less than there are

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        super().check()
        self.check_stages({"neighbourhoods": odd(LARGEST_WINDOW), "layer_scale": share})

    def downsampled(self, rows: int, columns: int) -> tuple[int, int]:
        return -(-rows // 2), -(-columns // 2)

    def attention(self, stage: int, kind: str, size: tuple[int, int]) -> nn.Module:
        attention = super().attention(stage, kind, size) if kind != "N" else None
        if isinstance(attention, DeformableAttention):
            return attention.clone(corners=True)
        if attention is not None:
            return attention
        return NeighbourhoodAttention(
            self.heads[stage],
            self.neighbourhoods[stage],
            self.dtype,
            initializers=uniform_initializers,
            parent=None,
        )

    def _block_options(self, stage: int) -> dict[str, Any]:
        return {**super()._block_options(stage), "convolutions": True, "layer_scale": self.layer_scale[stage]}

    def _halving(self, width: int) -> nn.Module:
        return NormedHalving(width, 3, bias=False, dtype=self.dtype)
