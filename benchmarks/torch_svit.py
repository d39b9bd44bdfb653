"""SViT in PyTorch, written from the specification as a PyTorch user would: maps [B, C, H, W], 1x1 convolutions, the
nine neighbours gathered by `F.unfold` and scattered by `F.fold`. See `torch_reference` for names and for who uses it.

Shape letters: B batch, H W feature height and width, C channels, h w super-token grid, r c rows and columns of a cell,
A attention heads, E width of a head.
"""

import torch
from torch import nn
from torch.nn import functional as F

LAYER_NORM_EPSILON = 1e-6


class Pointwise(nn.Linear):
    """A 1x1 convolution; its weight is that of a linear layer."""

    def forward(self, features):
        return F.conv2d(features, self.weight[:, :, None, None], self.bias)


class DepthwiseResidual(nn.Conv2d):
    """x + depthwise 3x3 convolution of x."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, features):
        return features + super().forward(features)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def __init__(self, channels):
        super().__init__(channels, eps=LAYER_NORM_EPSILON)

    def forward(self, features):
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(self, features):
        return features * self.scale[:, None, None]


class SuperTokenAttention(nn.Module):
    """Cluster, attend, scatter; with a cell of (1, 1) plain attention of all pixels."""

    def __init__(self, channels, heads, cell, iterations):
        super().__init__()
        self.heads, self.iterations = heads, iterations
        self.cell = (cell, cell) if isinstance(cell, int) else cell
        self.qkv = Pointwise(channels, 3 * channels)
        self.out = Pointwise(channels, channels)

    def forward(self, features):
        if self.cell == (1, 1):
            return self.attend(features)
        wanted, (r, c) = features.shape[2:], self.cell
        if wanted[0] % r or wanted[1] % c:
            features = F.pad(features, (0, -wanted[1] % c, 0, -wanted[0] % r))
        batch, channels, height, width = features.shape
        h, w = height // r, width // c
        pixels = features.reshape(batch, channels, h, r, w, c).permute(0, 2, 4, 3, 5, 1)  # [B, h, w, r, c, C]
        pixels = pixels.reshape(batch, h * w, r * c, channels)  # [B, hw, rc, C]

        def neighbours(super_tokens):
            unfolded = F.unfold(super_tokens, 3, padding=1)  # [B, C * 9, hw]
            return unfolded.reshape(batch, channels, 9, h * w).permute(0, 3, 1, 2)  # [B, hw, C, 9]

        def aggregate(affinity, shares):
            sums = pixels.transpose(2, 3) @ affinity  # [B, hw, C, 9]
            sums = sums.permute(0, 2, 3, 1).reshape(batch, channels * 9, h * w)  # [B, C * 9, hw]
            return F.fold(sums, (h, w), 3, padding=1) / shares

        with torch.no_grad():
            super_tokens = F.adaptive_avg_pool2d(features, (h, w))
            for iteration in range(self.iterations):
                affinity = (pixels @ neighbours(super_tokens) * channels**-0.5).softmax(dim=-1)  # [B, hw, rc, 9]
                shares = F.fold(affinity.sum(dim=2).transpose(1, 2), (h, w), 3, padding=1) + 1e-12  # [B, 1, h, w]
                if iteration < self.iterations - 1:
                    super_tokens = aggregate(affinity, shares)
        attended = self.attend(aggregate(affinity, shares))
        pixels = affinity @ neighbours(attended).transpose(2, 3)  # [B, hw, rc, C]
        pixels = pixels.reshape(batch, h, w, r, c, channels).permute(0, 5, 1, 3, 2, 4)  # [B, C, h, r, w, c]
        return pixels.reshape(batch, channels, height, width)[:, :, : wanted[0], : wanted[1]]

    def attend(self, features):
        batch, channels, height, width = features.shape
        qkv = self.qkv(features).reshape(batch, self.heads, 3, channels // self.heads, height * width)
        query, key, value = qkv.transpose(3, 4).unbind(2)  # each [B, A, HW, E]
        outputs = F.scaled_dot_product_attention(query, key, value)
        return self.out(outputs.transpose(2, 3).reshape(batch, channels, height, width))


class ConvFFN(nn.ModuleDict):
    """1x1 convolution, GELU, depthwise residual, 1x1 convolution."""

    def __init__(self, channels, hidden):
        super().__init__(
            {
                "in": Pointwise(channels, hidden),
                "depthwise": DepthwiseResidual(hidden),
                "out": Pointwise(hidden, channels),
            }
        )

    def forward(self, features):
        return self["out"](self["depthwise"](F.gelu(self["in"](features))))


class Block(nn.Module):
    def __init__(self, channels, heads, cell, hidden, iterations, layer_scale):
        super().__init__()
        self.position = DepthwiseResidual(channels)
        self.attention_norm = ChannelNorm(channels)
        self.attention = SuperTokenAttention(channels, heads, cell, iterations)
        self.attention_scale = LayerScale(channels) if layer_scale else nn.Identity()
        self.mlp_norm = nn.BatchNorm2d(channels)
        self.mlp = ConvFFN(channels, hidden)
        self.mlp_scale = LayerScale(channels) if layer_scale else nn.Identity()

    def forward(self, features):
        features = self.position(features)
        features = features + self.attention_scale(self.attention(self.attention_norm(features)))
        return features + self.mlp_scale(self.mlp(self.mlp_norm(features)))


class Merging(nn.Module):
    def __init__(self, channels, features):
        super().__init__()
        self.convolution = nn.Conv2d(channels, features, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, features):
        return self.norm(self.convolution(features))


class Stem(nn.Module):
    """Modules of convolution -> GELU -> BatchNorm."""

    def __init__(self, widths, strides):
        super().__init__()
        self.convolution, self.norm = nn.ModuleDict(), nn.ModuleDict()
        for index, (channels, width, stride) in enumerate(zip((3, *widths), widths, strides, strict=False), start=1):
            self.convolution[str(index)] = nn.Conv2d(channels, width, 3, stride, padding=1)
            self.norm[str(index)] = nn.BatchNorm2d(width)

    def forward(self, images):
        for convolution, norm in zip(self.convolution.values(), self.norm.values(), strict=True):
            images = norm(F.gelu(convolution(images)))
        return images


class SViT(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes] (or features); `options` are those of `factory.model_options`."""

    def __init__(self, num_classes, options):
        super().__init__()
        widths, self.depths = options["widths"], options["depths"]
        self.embedding = Stem(options["stem_widths"], options["stem_strides"])
        stages = zip(widths, self.depths, options["heads"], options["cells"], options["layer_scale"], strict=True)
        self.blocks = nn.ModuleList(
            Block(width, heads, cell, options["mlp_ratio"] * width, options["association_iterations"], scale)
            for width, depth, heads, cell, scale in stages
            for _ in range(depth)
        )
        self.merging = nn.ModuleList(map(Merging, widths[:-1], widths[1:]))
        self.projection = Pointwise(widths[-1], options["head_width"])
        self.norm = nn.BatchNorm2d(options["head_width"])
        self.head = nn.Linear(options["head_width"], num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        features, blocks = self.embedding(images), iter(self.blocks)
        for stage, depth in enumerate(self.depths):
            if stage:
                features = self.merging[stage - 1](features)
            for _ in range(depth):
                features = next(blocks)(features)
        features = F.silu(self.norm(self.projection(features)))
        return self.head(features.mean(dim=(2, 3)))
