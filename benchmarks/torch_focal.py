"""Focal Transformer (version 1) in PyTorch, written from the specification as a PyTorch user would.

Surroundings of windows come from `torch.roll`, pooled windows around them from `F.unfold`. Modules carry the published
code's names.

Shape letters: B batch, H W feature height and width, C channels, n windows of a map, N places of a window, M keys of a
window, f side of the square of pooled windows, A attention heads, E width of a head.
"""

from collections import OrderedDict

import torch
import torch_windows
from torch import nn
from torch.nn import functional as F

# What this model leaves out of the package's options.
FIXED = {"wrap": True}


class Attention(nn.Module):
    """Focal attention within windows; the map's sides must be multiples of the window's."""

    def __init__(self, channels, heads, window, focal_window, expand):
        super().__init__()
        self.heads, self.window, self.focal_window, self.expand = heads, window, focal_window, expand
        places = window**2
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", torch_windows.offsets_index(window, window), persistent=False)
        if expand:
            around = 4 * (places - (window - expand) ** 2)
            self.relative_position_bias_table_to_neighbors = nn.Parameter(torch.zeros(heads, places, around))
            self.register_buffer("around", self._places_around(), persistent=False)
        pooled = torch.zeros(heads, (window + focal_window - 1) ** 2)
        self.relative_position_bias_table_to_windows = nn.ParameterList([nn.Parameter(pooled)])
        index = torch_windows.offsets_index(window, focal_window)
        self.register_buffer("pooled_index", index, persistent=False)

    def _places_around(self):
        """Which places are keys, of the windows at maps rolled to the four corners: an index into 4 N."""
        first, last = (torch.arange(self.window) < self.expand for _ in range(2))
        last = last.flip(0)
        strips = [
            (rows[:, None] | columns[None]).flatten()
            for rows, columns in ((last, last), (last, first), (first, last), (first, first))
        ]
        return torch.cat(strips).nonzero().flatten()

    def forward(self, features, pool):
        """[B, H, W, C] -> [B, H, W, C]; `pool` makes one place of a window's, [..., C, N] -> [..., C, 1]."""
        height, width, channels = features.shape[1:]
        side = self.window
        query, key_value = self.qkv(features).split([channels, 2 * channels], dim=-1)
        keys = [torch_windows.to_windows(key_value, side)]
        if self.expand:
            shifts = [(down, right) for down in (-self.expand, self.expand) for right in (-self.expand, self.expand)]
            rolled = [torch_windows.to_windows(torch.roll(key_value, shift, dims=(1, 2)), side) for shift in shifts]
            keys.append(torch.cat(rolled, dim=2)[:, :, self.around])
        grid = height // side, width // side
        pooled = pool(torch_windows.to_windows(features, side).transpose(2, 3)).squeeze(3)  # [B, n, C]
        pooled = self.qkv(pooled)[..., channels:].transpose(1, 2).unflatten(2, grid)  # [B, 2C, rows, columns]
        around = F.unfold(pooled, self.focal_window, padding=self.focal_window // 2)  # [B, 2C f f, n]
        keys.append(around.unflatten(1, (2 * channels, -1)).permute(0, 3, 2, 1))
        key, value = self._heads(torch.cat(keys, dim=2), 2)
        (query,) = self._heads(torch_windows.to_windows(query, side), 1)
        outputs = torch_windows.attend(query, key, value, self._bias(grid))  # [B, n, A, N, E]
        outputs = self.proj(outputs.transpose(2, 3).flatten(3))
        return torch_windows.from_windows(outputs, (height, width), side)

    def _heads(self, values, parts):
        """[B, n, M, parts * C] -> as many [B, n, A, M, E]."""
        return values.unflatten(3, (parts, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)

    def _bias(self, grid):
        """[1 or n, A, N, M] of relative positions; pooled windows beyond the map are hidden."""
        biases = [self.relative_position_bias_table[self.index].permute(2, 0, 1)]
        if self.expand:
            biases.append(self.relative_position_bias_table_to_neighbors)
        biases.append(self.relative_position_bias_table_to_windows[0][:, self.pooled_index])
        own = torch.cat(biases, dim=-1)[None]
        if self.focal_window == 1:
            return own
        there = torch.ones(1, 1, *grid, dtype=own.dtype, device=own.device)
        there = F.unfold(there, self.focal_window, padding=self.focal_window // 2)[0].transpose(0, 1)  # [n, f f]
        hidden = F.pad((1 - there) * torch_windows.HIDDEN, (own.shape[-1] - there.shape[-1], 0))  # [n, M]
        return own + hidden[:, None, None]


class Block(nn.Module):
    """[B, H, W, C] -> [B, H, W, C]; a map that windows do not divide is padded, and cropped again."""

    def __init__(self, channels, heads, window, focal_window, expand, hidden):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads, window, focal_window, expand)
        self.pool_layers = nn.ModuleList([nn.Linear(window**2, 1)])
        self.norm2 = nn.LayerNorm(channels)
        layers = {"fc1": nn.Linear(channels, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, channels)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, features):
        height, width = features.shape[1:3]
        side = self.attn.window
        normed = F.pad(self.norm1(features), (0, 0, 0, -width % side, 0, -height % side))
        features = features + self.attn(normed, self.pool_layers[0])[:, :height, :width]
        return features + self.mlp(self.norm2(features))


class PatchEmbed(nn.Module):
    """Convolution, LayerNorm over channels: [B, H, W, C] -> [B, h, w, C']."""

    def __init__(self, channels, features, kernel, stride, padding):
        super().__init__()
        self.proj = nn.Conv2d(channels, features, kernel, stride, padding)
        self.norm = nn.LayerNorm(features)

    def forward(self, features):
        return self.norm(self.proj(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Stage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, features):
        for block in self.blocks:
            features = block(features)
        return features if self.downsample is None else self.downsample(features)


class FocalTransformer(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes], for images of one size.

    Args of stages have an entry for each. `patch` and `halving` are (kernel, stride, padding) of the convolutions in
    front of the first stage and of the others.
    """

    def __init__(
        self, num_classes, image_size, widths, depths, heads, window, focal_windows, expands, mlp_ratio, patch, halving
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(3, widths[0], *patch)
        sides = _convolved(image_size, *patch)
        self.layers = nn.ModuleList()
        stages = zip(widths, depths, heads, focal_windows, expands, strict=True)
        for stage, (width, depth, count, focal_window, expand) in enumerate(stages):
            small = min(sides) <= window
            own = (count, min(sides), focal_window, 0) if small else (count, window, focal_window, expand)
            blocks = [Block(width, *own, mlp_ratio * width) for _ in range(depth)]
            last = stage == len(widths) - 1
            self.layers.append(Stage(blocks, None if last else PatchEmbed(width, widths[stage + 1], *halving)))
            sides = _convolved(sides, *halving)
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        features = self.patch_embed(images.permute(0, 2, 3, 1))
        for layer in self.layers:
            features = layer(features)
        return self.head(self.norm(features).mean(dim=(1, 2)))


def _convolved(sides, kernel, stride, padding):
    return tuple((side + 2 * padding - kernel) // stride + 1 for side in sides)


def build(num_classes, image_size, options):
    """The model of these options of the package, for images of (height, width) pixels."""
    if any(options["layer_scale"]):
        raise NotImplementedError("the PyTorch reference of Focal Transformer has no layer scale")
    stages = {key: options[key] for key in ("widths", "depths", "heads", "focal_windows", "expands")}
    size, kernel = options["patch_size"], options["halving_kernel"]
    patch = (size, options.get("patch_stride", size), options.get("patch_padding", 0))
    halving = (kernel, 2, kernel // 2 if kernel % 2 else 0)
    whole = {"window": options["window"], "mlp_ratio": options["mlp_ratio"], "patch": patch, "halving": halving}
    return FocalTransformer(num_classes, image_size, **stages, **whole)


def linen_names(options):
    """{name here: path there} of the modules that have parameters, and of parameters that belong to the model."""
    embedded = "convolution" if "patch_stride" in options else "projection"
    names = {
        "patch_embed.proj": f"embedding/{embedded}",
        "patch_embed.norm": "embedding_norm",
        "norm": "norm",
        "head": "head",
    }
    done = 0
    for stage, depth in enumerate(options["depths"]):
        names[f"layers.{stage}.downsample.proj"] = f"halving_{stage}/projection"
        names[f"layers.{stage}.downsample.norm"] = f"halving_{stage}/norm"
        for index in range(depth):
            theirs, ours = f"layers.{stage}.blocks.{index}", f"blocks_{done + index}"
            tables = f"{theirs}.attn.relative_position_bias_table"
            names |= {
                f"{theirs}.norm1": f"{ours}/attention_norm",
                f"{theirs}.attn.qkv": f"{ours}/attention/qkv",
                f"{theirs}.attn.proj": f"{ours}/attention/out",
                f"{theirs}.pool_layers.0": f"{ours}/attention/pool",
                tables: f"{ours}/attention/bias_table",
                f"{tables}_to_neighbors": f"{ours}/attention/surrounding_bias",
                f"{tables}_to_windows.0": f"{ours}/attention/pooled_bias_table",
                f"{theirs}.norm2": f"{ours}/mlp_norm",
                f"{theirs}.mlp.fc1": f"{ours}/mlp/in",
                f"{theirs}.mlp.fc2": f"{ours}/mlp/out",
            }
        done += depth
    return names
