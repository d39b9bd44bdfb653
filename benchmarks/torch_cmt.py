"""CMT in PyTorch, written from the specification as a PyTorch user would: modules carry the published code's names.

Shape letters: B batch, H W feature height and width, C channels, N places of a map, M keys, A attention heads, E width
of a head.
"""

import torch
from torch import nn
from torch.nn import functional as F

LETTERS = "abcdefgh"  # of the stages
FIXED = {}  # what this model leaves out of the package's options: nothing


def tokens_of(features):
    """[B, C, H, W] -> [B, N, C]; a view of what lies channels last."""
    return features.flatten(2).transpose(1, 2)


def map_of(tokens, size):
    """[B, N, C] -> [B, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, size)


class Attention(nn.Module):
    """Attention of a map to as many keys as a depthwise convolution of stride `reduction` leaves."""

    def __init__(self, channels, heads, reduction):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(channels, channels) for _ in range(4))
        if reduction > 1:
            convolution = nn.Conv2d(channels, channels, reduction, reduction, groups=channels)
            self.sr = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        else:
            self.sr = nn.Identity()

    def forward(self, tokens, size, position):
        context = tokens if isinstance(self.sr, nn.Identity) else tokens_of(self.sr(map_of(tokens, size)))
        query, key, value = (
            layer(source).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, A, N, E]
            for layer, source in ((self.q, tokens), (self.k, context), (self.v, context))
        )
        outputs = F.scaled_dot_product_attention(query, key, value, attn_mask=position[None])
        return self.proj(outputs.transpose(1, 2).flatten(2))


class ConvMLP(nn.Module):
    """1x1 convolution, a depthwise one with its shortcut, 1x1 convolution; a BatchNorm behind each."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, features):
        hidden = self.conv1(features)
        return self.conv2(self.proj_bn(F.gelu(self.proj(hidden) + hidden)))


class Block(nn.Module):
    def __init__(self, channels, heads, reduction, hidden):
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = ConvMLP(channels, hidden)

    def forward(self, features, position):
        size = features.shape[2:]
        tokens = tokens_of(features + self.proj(features))
        tokens = tokens + self.attn(self.norm1(tokens), size, position)
        return map_of(tokens, size) + self.mlp(map_of(self.norm2(tokens), size))


class PatchEmbed(nn.Module):
    """2x2 convolution of stride 2, LayerNorm over channels."""

    def __init__(self, channels, features):
        super().__init__()
        self.proj = nn.Conv2d(channels, features, 2, 2)
        self.norm = nn.LayerNorm(features)

    def forward(self, inputs):
        features = self.proj(inputs)
        return map_of(self.norm(tokens_of(features)), features.shape[2:])


class CMT(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes], for images of one size.

    Args of stages have an entry for each: `grids` (rows, columns) of its map, `reductions` of its keys.
    """

    def __init__(
        self, num_classes, grids, widths, depths, heads, reductions, mlp_ratios, head_width, stem_widths, stem_strides
    ):
        super().__init__()
        self.letters, self.stem = LETTERS[: len(widths)], len(stem_widths)
        channels = 3
        for index, (width, stride) in enumerate(zip(stem_widths, stem_strides, strict=True), start=1):
            setattr(self, f"stem_conv{index}", nn.Conv2d(channels, width, 3, stride, padding=1))
            setattr(self, f"stem_norm{index}", nn.BatchNorm2d(width))
            channels = width
        stages = zip(self.letters, grids, widths, depths, heads, reductions, mlp_ratios, strict=True)
        for letter, (rows, columns), width, depth, count, reduction, ratio in stages:
            setattr(self, f"patch_embed_{letter}", PatchEmbed(channels, width))
            keys = (rows // reduction) * (columns // reduction)
            setattr(self, f"relative_pos_{letter}", nn.Parameter(torch.randn(count, rows * columns, keys)))
            blocks = (Block(width, count, reduction, int(width * ratio)) for _ in range(depth))
            setattr(self, f"blocks_{letter}", nn.ModuleList(blocks))
            channels = width
        self._fc = nn.Conv2d(channels, head_width, 1)
        self._bn = nn.BatchNorm2d(head_width)
        self.head = nn.Linear(head_width, num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        features = images
        for index in range(1, self.stem + 1):
            features = getattr(self, f"stem_norm{index}")(F.gelu(getattr(self, f"stem_conv{index}")(features)))
        for letter in self.letters:
            features = getattr(self, f"patch_embed_{letter}")(features)
            for block in getattr(self, f"blocks_{letter}"):
                features = block(features, getattr(self, f"relative_pos_{letter}"))
        return self.head(F.silu(self._bn(self._fc(features))).mean(dim=(2, 3)))


def grids_of(image_size, stem_strides, stages):
    """The sides of each stage's map, of images of (height, width) pixels."""
    grids, sides = [], image_size
    for stride in stem_strides:
        sides = [-(-side // stride) for side in sides]
    for _ in range(stages):
        sides = [side // 2 for side in sides]
        grids.append(tuple(sides))
    return grids


def build(num_classes, image_size, options):
    """The model of these options of the package, for images of (height, width) pixels."""
    stages = {key: options[key] for key in ("widths", "depths", "heads", "mlp_ratios", "head_width")}
    stem = {key: options[key] for key in ("stem_widths", "stem_strides")}
    grids = grids_of(image_size, options["stem_strides"], len(options["widths"]))
    return CMT(num_classes, grids, reductions=options["key_strides"], **stages, **stem)


def linen_names(options):
    """{name here: path there} of the modules that have parameters, and of parameters that belong to the model."""
    names = {"_fc": "projection", "_bn": "norm", "head": "head"}
    for index in range(1, len(options["stem_widths"]) + 1):
        names[f"stem_conv{index}"] = f"embedding/module_{index}/convolution"
        names[f"stem_norm{index}"] = f"embedding/module_{index}/norm"
    done = 0
    for stage, depth in enumerate(options["depths"]):
        letter = LETTERS[stage]
        halving = f"merging_{stage - 1}" if stage else "embedding/halving"
        names |= {
            f"patch_embed_{letter}.proj": f"{halving}/projection",
            f"patch_embed_{letter}.norm": f"stage_norms_{stage}",
            f"relative_pos_{letter}": f"position_bias_{stage}",
        }
        for index in range(depth):
            theirs, ours = f"blocks_{letter}.{index}", f"blocks_{done + index}"
            names |= {
                f"{theirs}.proj": f"{ours}/position",
                f"{theirs}.norm1": f"{ours}/attention_norm",
                f"{theirs}.attn.q": f"{ours}/attention/query",
                f"{theirs}.attn.k": f"{ours}/attention/key",
                f"{theirs}.attn.v": f"{ours}/attention/value",
                f"{theirs}.attn.proj": f"{ours}/attention/out",
                f"{theirs}.attn.sr.0": f"{ours}/attention",
                f"{theirs}.attn.sr.1": f"{ours}/attention/norm",
                f"{theirs}.norm2": f"{ours}/mlp_norm",
                f"{theirs}.mlp.conv1.0": f"{ours}/mlp/in",
                f"{theirs}.mlp.conv1.2": f"{ours}/mlp/in_norm",
                f"{theirs}.mlp.proj": f"{ours}/mlp/depthwise",
                f"{theirs}.mlp.proj_bn": f"{ours}/mlp/depthwise_norm",
                f"{theirs}.mlp.conv2.0": f"{ours}/mlp/out",
                f"{theirs}.mlp.conv2.1": f"{ours}/mlp/out_norm",
            }
        done += depth
    return names
