"""CvT in PyTorch, written from the specification as a PyTorch user would: modules carry the published code's names.

Shape letters: B batch, N tokens, H W feature height and width, C channels, A attention heads, E width of a head.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

# What this model leaves out of the package's options.
FIXED = {
    "class_token": True,
    "projection": "conv",
    "scale": "width",
    "activation": "quick_gelu",
    "downsample": "conv",
}


class Projection(nn.Sequential):
    """Depthwise 3x3 convolution without bias, BatchNorm."""

    def __init__(self, channels, stride):
        convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        super().__init__(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(channels)))


class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads, self.scale = heads, channels**-0.5  # of the whole width, as published
        for name, stride in (("q", 1), ("k", 2), ("v", 2)):
            setattr(self, f"conv_proj_{name}", Projection(channels, stride))
            setattr(self, f"proj_{name}", nn.Linear(channels, channels))
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens, size):
        batch, count, channels = tokens.shape
        leading = count - size[0] * size[1]
        class_tokens, places = tokens.split([leading, count - leading], dim=1)
        features = places.transpose(1, 2).reshape(batch, channels, *size)

        def heads(name):
            convolved = getattr(self, f"conv_proj_{name}")(features).flatten(2).transpose(1, 2)
            if leading:
                convolved = torch.cat([class_tokens, convolved], dim=1)
            projected = getattr(self, f"proj_{name}")(convolved)
            return projected.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, A, N, E]

        outputs = F.scaled_dot_product_attention(heads("q"), heads("k"), heads("v"), scale=self.scale)
        return self.proj(outputs.transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    def forward(self, inputs):
        return inputs * torch.sigmoid(1.702 * inputs)


class Block(nn.Module):
    def __init__(self, channels, heads, hidden):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        layers = {"fc1": nn.Linear(channels, hidden), "act": QuickGELU(), "fc2": nn.Linear(hidden, channels)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, tokens, size):
        tokens = tokens + self.attn(self.norm1(tokens), size)
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbed(nn.Module):
    """Convolution, LayerNorm over channels: [B, C, H, W] -> (tokens [B, N, C'], (h, w))."""

    def __init__(self, channels, features, kernel, stride, padding):
        super().__init__()
        self.proj = nn.Conv2d(channels, features, kernel, stride, padding)
        self.norm = nn.LayerNorm(features)

    def forward(self, inputs):
        features = self.proj(inputs)
        return self.norm(features.flatten(2).transpose(1, 2)), features.shape[2:]


class Stage(nn.Module):
    """A patch embedding and blocks, [B, C, H, W] -> (tokens, (h, w)); the class token, if any, comes first."""

    def __init__(self, patch_embed, channels, depth, heads, hidden, class_token):
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels)) if class_token else None
        self.blocks = nn.ModuleList(Block(channels, heads, hidden) for _ in range(depth))

    def forward(self, features):
        tokens, size = self.patch_embed(features)
        if self.cls_token is not None:
            class_tokens = self.cls_token.expand(len(tokens), -1, -1)
            tokens = torch.cat([class_tokens.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, size)
        return tokens, size


class CvT(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes]; `patch` is (kernel, stride, padding) of the first convolution."""

    def __init__(self, num_classes, widths, depths, heads, mlp_ratio=4, patch=(7, 4, 2)):
        super().__init__()
        self.stages = len(widths)
        channels = 3
        for stage, (width, depth, count) in enumerate(zip(widths, depths, heads, strict=True)):
            embed = PatchEmbed(channels, width, *(patch if stage == 0 else (3, 2, 1)))
            last = stage == self.stages - 1
            setattr(self, f"stage{stage}", Stage(embed, width, depth, count, mlp_ratio * width, class_token=last))
            channels = width
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        features = images
        for stage in range(self.stages - 1):
            tokens, size = getattr(self, f"stage{stage}")(features)
            features = tokens.transpose(1, 2).unflatten(2, size)
        tokens, _ = getattr(self, f"stage{self.stages - 1}")(features)
        return self.head(self.norm(tokens)[:, 0])


def build(num_classes, image_size, options):
    """The model of these options of the package, for images of any size."""
    del image_size
    patch = tuple(options[f"patch_{name}"] for name in ("size", "stride", "padding"))
    stages = {key: options[key] for key in ("widths", "depths", "heads", "mlp_ratio")}
    return CvT(num_classes, **stages, patch=patch)


def linen_names(options):
    """{name here: path there} of the modules that have parameters, and of parameters that belong to the model."""
    names = {"norm": "norm", "head": "head", f"stage{len(options['widths']) - 1}.cls_token": "class_token"}
    done = 0
    for stage, depth in enumerate(options["depths"]):
        names[f"stage{stage}.patch_embed.proj"] = f"downsampling_{stage - 1}" if stage else "embedding/convolution"
        names[f"stage{stage}.patch_embed.norm"] = f"embedding_norms_{stage}"
        for index in range(depth):
            theirs, ours = f"stage{stage}.blocks.{index}", f"blocks_{done + index}"
            for name in ("query", "key", "value"):
                names[f"{theirs}.attn.conv_proj_{name[0]}.conv"] = f"{ours}/attention/{name}_projection"
                names[f"{theirs}.attn.conv_proj_{name[0]}.bn"] = f"{ours}/attention/{name}_projection/norm"
                names[f"{theirs}.attn.proj_{name[0]}"] = f"{ours}/attention/{name}"
            names |= {
                f"{theirs}.norm1": f"{ours}/attention_norm",
                f"{theirs}.attn.proj": f"{ours}/attention/out",
                f"{theirs}.norm2": f"{ours}/mlp_norm",
                f"{theirs}.mlp.fc1": f"{ours}/mlp/in",
                f"{theirs}.mlp.fc2": f"{ours}/mlp/out",
            }
        done += depth
    return names
