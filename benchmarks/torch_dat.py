"""DAT and DAT++ in PyTorch, written from the specification as a PyTorch user would, sampling by `F.grid_sample`.

Modules carry the published codes' names. DAT++'s neighbourhood attention is there a CUDA kernel of the package natten;
here keys are gathered, so that it needs no more than PyTorch, and costs k x k times the memory of a map.

Shape letters: B batch, H W feature height and width, C channels, G groups of channels, g = C / G, h w rows and columns
of samples, S = h w, n windows of a map, N places of a window, k side of a neighbourhood, A heads, E width of a head.
"""

from collections import OrderedDict

import torch
import torch_windows
from torch import nn
from torch.nn import functional as F

FIXED = {}  # what this model leaves out of the package's options: nothing


class LayerNormProxy(nn.Module):
    """LayerNorm over the channels of [B, C, H, W]."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, features):
        return self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LocalAttention(nn.Module):
    """Attention within windows, shifted or not, [B, C, H, W] -> [B, C, H, W]; windows must divide the map."""

    def __init__(self, channels, heads, size, window, shift=0):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.proj_qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", torch_windows.offsets_index(window, window), persistent=False)
        mask = torch_windows.shift_mask(size, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, features):
        features = features.permute(0, 2, 3, 1)
        size = features.shape[1:3]
        if self.shift:
            features = torch.roll(features, (-self.shift, -self.shift), dims=(1, 2))
        windows = self.proj_qkv(torch_windows.to_windows(features, self.window))
        query, key, value = windows.unflatten(3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None]  # [1, A, N, N]
        if self.mask is not None:
            bias = bias + self.mask[:, None]
        outputs = torch_windows.attend(query, key, value, bias).transpose(2, 3).flatten(3)  # [B, n, N, C]
        outputs = torch_windows.from_windows(self.proj_out(outputs), size, self.window)
        if self.shift:
            outputs = torch.roll(outputs, (self.shift, self.shift), dims=(1, 2))
        return outputs.permute(0, 3, 1, 2)


class NeighbourhoodAttention(nn.Module):
    """Attention of each place to the k x k places nearest to it, [B, C, H, W] -> [B, C, H, W]; parameters as natten's.

    Near a border the square is moved inwards; a shorter side of the map is seen whole.
    """

    def __init__(self, channels, heads, size, kernel):
        super().__init__()
        self.heads, self.seen = heads, tuple(min(kernel, side) for side in size)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * kernel - 1, 2 * kernel - 1))
        for name, side, seen in zip(("rows", "columns"), size, self.seen, strict=True):
            starts = (torch.arange(side) - kernel // 2).clamp(0, side - seen)
            offsets = starts[:, None] + torch.arange(seen) - torch.arange(side)[:, None] + kernel - 1
            self.register_buffer(f"{name}_starts", starts, persistent=False)
            self.register_buffer(f"{name}_offsets", offsets, persistent=False)  # [side, seen], into rpb

    def forward(self, features):
        features = features.permute(0, 2, 3, 1)
        batch, height, width, channels = features.shape
        query, key_value = self.qkv(features).split([channels, 2 * channels], dim=-1)
        query = query.reshape(batch, height * width, self.heads, 1, -1)
        squares = key_value.unfold(1, self.seen[0], 1).unfold(2, self.seen[1], 1)  # every k x k square, a view
        squares = squares[:, self.rows_starts][:, :, self.columns_starts]  # [B, H, W, 2C, k, k]
        squares = squares.reshape(batch, height * width, 2, self.heads, channels // self.heads, -1)
        key, value = squares.permute(2, 0, 1, 3, 5, 4).unbind(0)  # each [B, H W, A, k k, E]
        bias = self.rpb[:, self.rows_offsets[:, None, :, None], self.columns_offsets[None, :, None, :]]
        bias = bias.flatten(3).flatten(1, 2).transpose(0, 1)[:, :, None]  # [H W, A, 1, k k]
        outputs = torch_windows.attend(query, key, value, bias)  # [B, H W, A, 1, E]
        return self.proj(outputs.reshape(batch, height, width, channels)).permute(0, 3, 1, 2)


class DeformableAttention(nn.Module):
    """Attention of all places to samples that lie where the queries say, [B, C, H, W] -> [B, C, H, W].

    With `plus` as in DAT++: positions of one place fewer on each side, cut off at the border where they are free.
    """

    def __init__(self, channels, heads, size, groups, kernel, stride, offset_range, plus):
        super().__init__()
        self.heads, self.groups, self.offset_range, self.plus = heads, groups, offset_range, plus
        own = channels // groups
        padding = kernel // 2 if kernel != stride or not plus else 0
        self.conv_offset = nn.Sequential(
            nn.Conv2d(own, own, kernel, stride, padding, groups=own),
            LayerNormProxy(own),
            nn.GELU(),
            nn.Conv2d(own, 2, 1, bias=False),
        )
        self.proj_q, self.proj_k, self.proj_v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.rpe_table = nn.Parameter(torch.zeros(heads, *(2 * side - 1 for side in size)))

    def forward(self, features):
        batch, channels, height, width = features.shape
        query = self.proj_q(features)
        positions = self.positions(self.conv_offset(self._grouped(query)).permute(0, 2, 3, 1))  # [BG, h, w, 2]
        samples = F.grid_sample(self._grouped(features), positions.flip(-1), align_corners=True)  # [BG, g, h, w]
        samples = samples.reshape(batch, channels, *positions.shape[1:3])
        places = positions.flatten(1, 2)[:, None]  # [BG, 1, S, 2]
        differences = (self._query_grid(height, width, positions) - places) / 2  # [BG, H W, S, 2]
        tables = self.rpe_table.unflatten(0, (self.groups, -1)).repeat(batch, 1, 1, 1)  # [BG, A / G, ...]
        bias = F.grid_sample(tables.to(differences.dtype), differences.flip(-1), align_corners=True)
        bias = bias.reshape(batch, self.heads, height * width, -1)
        key, value = (self._heads(layer(samples)) for layer in (self.proj_k, self.proj_v))
        outputs = F.scaled_dot_product_attention(self._heads(query), key, value, attn_mask=bias.to(key.dtype))
        return self.proj_out(outputs.transpose(2, 3).reshape(batch, channels, height, width))

    def positions(self, offsets):
        """Offsets [BG, h, w, 2] of samples from their grid -> where they lie, (y, x), the map being -1 to 1."""
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))  # bfloat16 cannot tell pixels apart
        counts = [side - int(self.plus) for side in offsets.shape[1:3]]
        axes = [
            (torch.arange(side, dtype=offsets.dtype, device=offsets.device) + 0.5) / count * 2 - 1
            for side, count in zip(offsets.shape[1:3], counts, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        if self.offset_range > 0:
            step = torch.tensor([1 / count for count in counts], device=offsets.device)
            return offsets.tanh() * step * self.offset_range + grid
        return (offsets + grid).clamp(-1, 1) if self.plus else (offsets + grid).tanh()

    def _query_grid(self, height, width, like):
        def axis(side):
            places = torch.arange(side, dtype=like.dtype, device=like.device)
            return places / (side - 1) * 2 - 1 if self.plus else (places + 0.5) / side * 2 - 1

        grid = torch.meshgrid(axis(height), axis(width), indexing="ij")
        return torch.stack(grid, dim=-1).reshape(1, height * width, 1, 2)

    def _grouped(self, features):
        """[B, C, H, W] -> [BG, g, H, W]."""
        return features.unflatten(1, (self.groups, -1)).flatten(0, 1)

    def _heads(self, features):
        """[B, C, H, W] -> [B, A, H W, E]."""
        return features.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)


class MLP(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        layers = {"linear1": nn.Linear(channels, hidden), "act": nn.GELU(), "linear2": nn.Linear(hidden, channels)}
        self.chunk = nn.Sequential(OrderedDict(layers))

    def forward(self, features):
        return self.chunk(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvMLP(nn.Module):
    """DAT++'s, with a depthwise convolution and its shortcut before the GELU."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.linear1 = nn.Sequential(nn.Conv2d(channels, hidden, 1))
        self.dwc = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.linear2 = nn.Sequential(nn.Conv2d(hidden, channels, 1))

    def forward(self, features):
        hidden = self.linear1(features)
        return self.linear2(F.gelu(hidden + self.dwc(hidden)))


class LayerScale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, features):
        return features * self.weight[:, None, None]


class Stage(nn.Module):
    """Blocks of an attention and an MLP, each a residual branch after LayerNorm."""

    def __init__(self, channels, attentions, hidden, plus, layer_scale):
        super().__init__()
        self.attns = nn.ModuleList(attentions)
        blocks = range(len(self.attns))
        self.layer_norms = nn.ModuleList(LayerNormProxy(channels) for _ in blocks for _ in range(2))
        self.mlps = nn.ModuleList((ConvMLP if plus else MLP)(channels, hidden) for _ in blocks)
        scales = (LayerScale(channels) if layer_scale else nn.Identity() for _ in blocks for _ in range(2))
        self.layer_scales = nn.ModuleList(scales)
        if plus:
            units = (nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in blocks)
            self.local_perception_units = nn.ModuleList(units)
        else:
            self.local_perception_units = None

    def forward(self, features):
        for index, (attention, mlp) in enumerate(zip(self.attns, self.mlps, strict=True)):
            if self.local_perception_units is not None:
                features = features + self.local_perception_units[index](features)
            for place, branch in ((2 * index, attention), (2 * index + 1, mlp)):
                features = features + self.layer_scales[place](branch(self.layer_norms[place](features)))
        return features


class DAT(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes], for images of one size; `plus` makes it DAT++.

    Args mean what they mean in the package; those of stages have an entry for each.
    """

    def __init__(
        self,
        num_classes,
        image_size,
        widths,
        heads,
        kinds,
        windows,
        groups,
        kernels,
        strides,
        offset_ranges,
        mlp_ratio,
        plus=False,
        patch_size=4,
        neighbourhoods=(7, 7, 7, 7),
        layer_scale=(0.0, 0.0, 0.0, 0.0),
    ):
        super().__init__()
        width = widths[0]
        if plus:
            first = nn.Conv2d(3, width // 2, 3, 2, padding=1), LayerNormProxy(width // 2), nn.GELU()
            self.patch_proj = nn.Sequential(
                *first, nn.Conv2d(width // 2, width, 3, 2, padding=1), LayerNormProxy(width)
            )
            sides = [-(-side // 4) for side in image_size]
        else:
            self.patch_proj = nn.Sequential(nn.Conv2d(3, width, patch_size, patch_size), LayerNormProxy(width))
            sides = [side // patch_size for side in image_size]
        self.stages, self.down_projs = nn.ModuleList(), nn.ModuleList()
        for stage, width in enumerate(widths):
            if stage:
                convolution = {"kernel_size": 3 if plus else 2, "stride": 2, "padding": int(plus), "bias": False}
                down = nn.Conv2d(widths[stage - 1], width, **convolution)
                self.down_projs.append(nn.Sequential(down, LayerNormProxy(width)))
                sides = [-(-side // 2) if plus else side // 2 for side in sides]
            window, common = windows[stage], (width, heads[stage], tuple(sides))
            deformable = groups[stage], kernels[stage], strides[stage], offset_ranges[stage], plus
            make = {
                "L": lambda common=common, window=window: LocalAttention(*common, window),
                "S": lambda common=common, window=window: LocalAttention(*common, window, -(-window // 2)),
                "N": lambda common=common, kernel=neighbourhoods[stage]: NeighbourhoodAttention(*common, kernel),
                "D": lambda common=common, deformable=deformable: DeformableAttention(*common, *deformable),
            }
            attentions = [make[kind]() for kind in kinds[stage]]
            self.stages.append(Stage(width, attentions, mlp_ratio * width, plus, layer_scale[stage]))
        self.cls_norm = LayerNormProxy(widths[-1])
        self.cls_head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        features = self.patch_proj(images)
        for index, stage in enumerate(self.stages):
            features = stage(self.down_projs[index - 1](features) if index else features)
        return self.cls_head(self.cls_norm(features).mean(dim=(2, 3)))


def build(num_classes, image_size, options):
    """The model of these options of the package, for images of (height, width) pixels."""
    taken = ("widths", "heads", "kinds", "windows", "groups", "kernels", "strides", "offset_ranges", "mlp_ratio")
    plus = "neighbourhoods" in options
    taken += ("neighbourhoods", "layer_scale") if plus else ("patch_size",)
    return DAT(num_classes, image_size, **{key: options[key] for key in taken}, plus=plus)


def linen_names(options):
    """{name here: path there} of the modules that have parameters, and of parameters that belong to the model."""
    plus = "neighbourhoods" in options
    names = {"cls_norm.norm": "norm", "cls_head": "head"}
    if plus:
        names |= {
            "patch_proj.0": "embedding/convolution_1",
            "patch_proj.1.norm": "embedding/norm",
            "patch_proj.3": "embedding/convolution_2",
            "patch_proj.4.norm": "embedding_norm",
        }
    else:
        names |= {"patch_proj.0": "embedding/projection", "patch_proj.1.norm": "embedding_norm"}
    done = 0
    for stage, kinds in enumerate(options["kinds"]):
        if stage:
            names[f"down_projs.{stage - 1}.0"] = f"halving_{stage - 1}/projection"
            names[f"down_projs.{stage - 1}.1.norm"] = f"halving_{stage - 1}/norm"
        for index in range(len(kinds)):
            theirs, ours = f"stages.{stage}", f"blocks_{done + index}"
            attention, own = f"{theirs}.attns.{index}", f"{ours}/attention"
            names |= {
                f"{theirs}.layer_norms.{2 * index}.norm": f"{ours}/attention_norm",
                f"{theirs}.layer_norms.{2 * index + 1}.norm": f"{ours}/mlp_norm",
                f"{theirs}.layer_scales.{2 * index}.weight": f"{ours}/attention_scale/scale",
                f"{theirs}.layer_scales.{2 * index + 1}.weight": f"{ours}/mlp_scale/scale",
                f"{theirs}.local_perception_units.{index}": f"{ours}/position",
                f"{theirs}.mlps.{index}.dwc": f"{ours}/mlp_depthwise",
                # of windows
                f"{attention}.proj_qkv": f"{own}/qkv",
                f"{attention}.relative_position_bias_table": f"{own}/bias_table",
                # of neighbourhoods
                f"{attention}.qkv": f"{own}/qkv",
                f"{attention}.proj": f"{own}/out",
                f"{attention}.rpb": f"{own}/bias_table",
                # of samples
                f"{attention}.proj_q": f"{own}/query",
                f"{attention}.proj_k": f"{own}/key",
                f"{attention}.proj_v": f"{own}/value",
                f"{attention}.proj_out": f"{own}/out",
                f"{attention}.conv_offset.0": f"{own}/offset_depthwise",
                f"{attention}.conv_offset.1.norm": f"{own}/offset_norm",
                f"{attention}.conv_offset.3": f"{own}/offset",
                f"{attention}.rpe_table": f"{own}/bias_table",
            }
            for number, place in ((1, "in"), (2, "out")):
                layer = f"linear{number}.0" if plus else f"chunk.linear{number}"
                names[f"{theirs}.mlps.{index}.{layer}"] = f"{ours}/mlp_{place}"
        done += len(kinds)
    return names
