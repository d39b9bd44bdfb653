"""The same models in PyTorch, as a PyTorch user would write them: what tests and benchmarks compare the package with.

Nothing here shares code with `stce_jax.models` except the resolution of a model's options. Layers are `torch.nn`'s own;
attention is PyTorch's fused one; clustering gathers the nine neighbours with `F.unfold` and scatters with `F.fold`,
where the package works on bands of cells, so that the two agree only if both are right.

ViTs and SViT carry the names of their linen twins, so that one rule translates parameters. The other bodies carry the
names of their published codes, or are timm's, and have a table of names beside them (`torch_NAME.linen_names`).
`copy_parameters` brings linen variables over, `parameters` and `gradients` bring PyTorch's back as trees in linen's
names and layout.

Shape letters: B batch, H W image or feature height and width, C channels, h w super-token grid, r c rows and columns of
a cell, N tokens, D model width, A attention heads, E width of a head.
"""

import functools
import re

import numpy as np
import torch
import torch_cmt
import torch_cvt
import torch_dat
import torch_focal
import torch_svit
import torch_timm
from torch import nn
from torch.nn import functional as F

from stce_jax.models.bodies import BODIES
from stce_jax.models.factory import model_options, presets

LAYER_NORM_EPSILON = 1e-6


class ConvModule(nn.Module):
    """Convolution -> GELU -> BatchNorm, [B, C, H, W] -> [B, features, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, channels, features, stride, kernel=3):
        super().__init__()
        self.convolution = nn.Conv2d(channels, features, kernel, stride, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, inputs):
        return self.norm(F.gelu(self.convolution(inputs)))


class EarlyConvModule(nn.Module):
    """Convolution without bias -> BatchNorm -> ReLU; shapes as `ConvModule`."""

    def __init__(self, channels, features, stride):
        super().__init__()
        self.convolution = nn.Conv2d(channels, features, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, inputs):
        return F.relu(self.norm(self.convolution(inputs)))


class PatchEmbed(nn.Module):
    """Patches -> LayerNorm -> linear -> LayerNorm, [B, 3, H, W] -> [B, N, D]."""

    def __init__(self, width, patch_size):
        super().__init__()
        self.patch_size = patch_size
        self.patch_norm = nn.LayerNorm(3 * patch_size**2, eps=LAYER_NORM_EPSILON)
        self.projection = nn.Linear(3 * patch_size**2, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    def forward(self, images):
        batch, channels, height, width = images.shape
        patch = self.patch_size
        rows, columns = height // patch, width // patch
        patches = images.reshape(batch, channels, rows, patch, columns, patch)
        patches = patches.permute(0, 2, 4, 3, 5, 1)  # [B, rows, columns, patch, patch, 3]
        patches = patches.reshape(batch, rows * columns, patch * patch * channels)  # [B, N, 768]
        return self.norm(self.projection(self.patch_norm(patches)))


def _stem(module_class, widths, strides, **last_options):
    """Modules named "1", "2", ...; `last_options` go to the last of them."""
    modules, channels = nn.ModuleDict(), 3
    for index, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
        options = last_options if index == len(widths) else {}
        modules[str(index)] = module_class(channels, width, stride, **options)
        channels = width
    return modules


def _tokens(features):
    """[B, C, h, w] -> [B, N, C], row by row."""
    return features.flatten(2).transpose(1, 2)


class ConvEmbed(nn.Module):
    """A stack of convolution modules, [B, 3, H, W] -> [B, N, D]; the last one's kernel is 3 or 1."""

    def __init__(self, stem_widths, stem_strides, last_kernel):
        super().__init__()
        self.module = _stem(ConvModule, stem_widths, stem_strides, kernel=last_kernel)

    def forward(self, images):
        for module in self.module.values():
            images = module(images)
        return _tokens(images)


class EarlyConvEmbed(nn.Module):
    """EarlyConv's modules, then a bare 1x1 convolution, [B, 3, H, W] -> [B, N, D]."""

    def __init__(self, width, stem_widths, stem_strides):
        super().__init__()
        self.module = _stem(EarlyConvModule, stem_widths, stem_strides)
        self.convolution = nn.Conv2d((3, *stem_widths)[-1], width, 1)

    def forward(self, images):
        for module in self.module.values():
            images = module(images)
        return _tokens(self.convolution(images))


class SuperTokenConvEmbed(nn.Module):
    """A narrow stack of convolution modules, super-token clustering, a linear layer: [B, 3, H, W] -> [B, N, D]."""

    def __init__(self, width, stem_widths, stem_strides, **clustering):
        super().__init__()
        self.clustering = clustering
        self.module = _stem(ConvModule, stem_widths, stem_strides)
        self.projection = nn.Linear((3, *stem_widths)[-1], width)

    def forward(self, images):
        for module in self.module.values():
            images = module(images)
        super_tokens, _ = cluster_super_tokens(images, **self.clustering)
        return self.projection(_tokens(super_tokens))


def cluster_super_tokens(features, cell, iterations=3, border="zero", differentiable=False):
    """Super-token clustering by nine neighbours; the arguments mean what they mean in the package.

    Args:
      features: [B, C, H, W]; computed in float32 at least, under autocast too.
      cell: cell size in pixels of the feature map, an int or (rows, columns).
      iterations: number of affinity computations, each followed by one aggregation.
      border: "zero" lets neighbours beyond the grid count as zero vectors, "mask" leaves them out of the softmax.
      differentiable: whether gradients flow through the affinities and their sums.

    Returns:
      (super tokens [B, C, h, w], the last affinities [B, h * r, w * c, 9] over the padded map).
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        r, c = (cell, cell) if isinstance(cell, int) else cell
        features = F.pad(features, (0, -features.shape[3] % c, 0, -features.shape[2] % r))
        batch, channels, height, width = features.shape
        h, w = height // r, width // c
        pixels = features.reshape(batch, channels, h, r, w, c)
        pixels = pixels.permute(0, 2, 4, 3, 5, 1)  # [B, h, w, r, c, C]
        pixels = pixels.reshape(batch, h * w, r * c, channels)  # [B, hw, rc, C]
        inside = F.unfold(features.new_ones(1, 1, h, w), 3, padding=1)  # [1, 9, hw], 0 beyond the grid
        beyond = inside.transpose(1, 2)[:, :, None, :] == 0  # [1, hw, 1, 9]

        def affinity_to(super_tokens):
            neighbours = F.unfold(super_tokens, 3, padding=1)  # [B, C * 9, hw]
            neighbours = neighbours.reshape(batch, channels, 9, h * w).permute(0, 3, 1, 2)  # [B, hw, C, 9]
            logits = pixels @ neighbours / channels**0.5  # [B, hw, rc, 9]
            if border == "mask":
                logits = logits.masked_fill(beyond, float("-inf"))
            return logits.softmax(dim=-1)

        def aggregate(affinity):
            sums = pixels.transpose(2, 3) @ affinity  # [B, hw, C, 9]
            sums = sums.permute(0, 2, 3, 1).reshape(batch, channels * 9, h * w)  # [B, C * 9, hw]
            shares = affinity.sum(dim=2).transpose(1, 2)  # [B, 9, hw]
            return F.fold(sums, (h, w), 3, padding=1) / (F.fold(shares, (h, w), 3, padding=1) + 1e-12)

        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            super_tokens = F.avg_pool2d(features, (r, c))  # [B, C, h, w]
            for _ in range(iterations - 1):
                super_tokens = aggregate(affinity_to(super_tokens))
            affinity = affinity_to(super_tokens)
        super_tokens = aggregate(affinity)
        affinity = affinity.reshape(batch, h, w, r, c, 9).permute(0, 1, 3, 2, 4, 5)  # [B, h, r, w, c, 9]
        return super_tokens, affinity.reshape(batch, height, width, 9)


class Attention(nn.Module):
    """Multi-head self-attention by PyTorch's fused kernel, [B, N, D] -> [B, N, D], or of the first `wanted` tokens."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens, wanted=None):
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)  # [B, N, 3, A, E]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, A, N, E]
        outputs = F.scaled_dot_product_attention(query[:, :, :wanted], key, value)
        return self.out(outputs.transpose(1, 2).reshape(batch, -1, width))  # [B, N, D]


class MLP(nn.ModuleDict):
    """Linear, GELU, linear, [B, N, D] -> [B, N, D]; a dict of modules because "in" is no name for an attribute."""

    def __init__(self, width, hidden):
        super().__init__({"in": nn.Linear(width, hidden), "out": nn.Linear(hidden, width)})

    def forward(self, tokens):
        return self["out"](F.gelu(self["in"](tokens)))


class Block(nn.Module):
    """A pre-norm transformer block, [B, N, D] -> [B, N, D], or of the first `wanted` tokens alone."""

    def __init__(self, width, heads, mlp_dim):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(width, mlp_dim)

    def forward(self, tokens, wanted=None):
        tokens = tokens[:, :wanted] + self.attention(self.attention_norm(tokens), wanted)
        return tokens + self.mlp(self.mlp_norm(tokens))


class VisionTransformer(nn.Module):
    """A vision transformer over any embedding, images [B, 3, H, W] -> logits [B, classes] (or features [B, D]).

    The last block computes all tokens, as in timm and DeiT, or with `class_token_alone` the one that the head reads.
    """

    def __init__(self, embedding, tokens, num_classes, width, depth, heads, mlp_dim, pooling, class_token_alone=False):
        super().__init__()
        self.pooling = pooling
        self.wanted = 1 if class_token_alone and pooling == "class" else None
        self.embedding = embedding
        if pooling == "class":
            self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, tokens + (pooling == "class"), width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        tokens = self.embedding(images)  # [B, N, D]
        if self.pooling == "class":
            class_tokens = self.class_token.expand(tokens.shape[0], -1, -1)  # [B, 1, D]
            tokens = torch.cat([class_tokens.to(tokens.dtype), tokens], dim=1)  # [B, 1 + N, D]
        tokens = tokens + self.position_embedding
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        tokens = last(tokens, self.wanted)
        tokens = self.norm(tokens)
        return self.head(tokens[:, 0] if self.pooling == "class" else tokens.mean(dim=1))


# Bodies with an embedding of their own: (what builds a model, its names in linen, the options that are fixed).
_OWN = {
    "cvt": torch_cvt,
    "cmt": torch_cmt,
    "focal": torch_focal,
    "focal_conv": torch_focal,
    "dat": torch_dat,
    "datpp": torch_dat,
}
_BODIES = {body: (module.build, module.linen_names, module.FIXED) for body, module in _OWN.items()} | {
    body: (functools.partial(torch_timm.build, body), functools.partial(torch_timm.linen_names, body), fixed)
    for body, fixed in torch_timm.FIXED.items()
}
_FIXED = {"dropout": 0.0, "drop_path": 0.0, "position_embedding": "learned", "scan_layers": False}


def undrawn(name):
    """Overrides of a named model with which it draws nothing at random, as the models here."""
    return {key: 0.0 for key in ("drop_path", "dropout", "head_dropout") if key in model_options(name)}


def has_embedding(name):
    """Whether the PyTorch twin of a named model has an `embedding` that gives tokens as its linen twin's does."""
    return presets()[name].body in ("vit", "svit")


def build(name, num_classes, image_size=224, *, class_token_alone=False, **overrides):
    """The PyTorch twin of `stce_jax.models.factory.create_model`: same names, same overrides, float32 parameters.

    How JAX computes (`dtype`, `remat`) is no business of the model here: use autocast for bfloat16; but see
    `VisionTransformer` for `class_token_alone`. Swin, MobileViT and DeiT are timm's.

    Raises:
      NotImplementedError: an option that this reference leaves out.
      ImportError: the model is timm's, which is not there.
    """
    options = model_options(name, **overrides)
    image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    body, embedding, _ = presets()[name]
    if others := {"body", "embedding", "reduction"} & overrides.keys():
        raise NotImplementedError(f"the PyTorch reference builds models by name, without the option {min(others)!r}")
    for key, value in {**_FIXED, **(_BODIES[body][2] if body in _BODIES else {})}.items():
        if options.get(key, value) != value:
            raise NotImplementedError(f"the PyTorch reference has {key}={value!r} only, not {options[key]!r}")
    if body == "svit":
        return torch_svit.SViT(num_classes, options)
    if body not in _BODIES:
        return _vision_transformer(name, num_classes, image_size, options, class_token_alone)
    if embedding != BODIES[body].EMBEDDING:
        raise NotImplementedError(f"the PyTorch reference of {body} has its own embedding only, not {embedding!r}")
    if class_token_alone and body == "deit":
        raise NotImplementedError("timm's DeiT computes all tokens of the last block, not the class token alone")
    make, linen_names, _ = _BODIES[body]
    model = make(num_classes, image_size, options)
    model.linen_names = linen_names(options)
    return model


def _vision_transformer(name, num_classes, image_size, options, class_token_alone):
    kind, width = name.split("_")[2], options["width"]
    if kind not in ("patch", "conv", "conv1x1", "earlyconv", "stce"):
        raise NotImplementedError(f"the PyTorch reference has no embedding {kind!r}")
    if kind == "patch":
        embedding = PatchEmbed(width, options["patch_size"])
    else:
        stem = options["stem_widths"], options["stem_strides"]
        if kind == "earlyconv":
            embedding = EarlyConvEmbed(width, *stem)
        elif kind == "stce":
            clustering = {key: options[key] for key in ("cell", "iterations", "border", "differentiable")}
            embedding = SuperTokenConvEmbed(width, *stem, **clustering)
        else:
            embedding = ConvEmbed(*stem, last_kernel=1 if kind == "conv1x1" else 3)
    with torch.no_grad():  # in eval mode: BatchNorm's running statistics stay as they are
        tokens = embedding.eval()(torch.zeros(1, 3, *image_size)).shape[1]
    body = {key: options[key] for key in ("width", "depth", "heads", "mlp_dim", "pooling")}
    return VisionTransformer(embedding.train(), tokens, num_classes, **body, class_token_alone=class_token_alone)


# What a PyTorch module's own tensors are called in linen, and for those whose axes differ, PyTorch's axes in linen's
# order: kernels are [out, in] there and [in, out] here, or [out, in, rows, columns] there and [rows, columns, in, out].
_LINEN_LEAVES = {
    nn.Linear: {"weight": ("params", "kernel", (1, 0)), "bias": ("params", "bias", None)},
    nn.Conv2d: {"weight": ("params", "kernel", (2, 3, 1, 0)), "bias": ("params", "bias", None)},
    nn.LayerNorm: {"weight": ("params", "scale", None), "bias": ("params", "bias", None)},
    nn.BatchNorm2d: {
        "weight": ("params", "scale", None),
        "bias": ("params", "bias", None),
        "running_mean": ("batch_stats", "mean", None),
        "running_var": ("batch_stats", "var", None),
        "num_batches_tracked": None,  # linen has none, and with a momentum PyTorch does not use it
    },
}


def _leaves(torch_model):
    """Yields (linen path, tensor, axes or None, linen shape) of every parameter and statistic of the model."""
    names = getattr(torch_model, "linen_names", None)
    for module_name, module in torch_model.named_modules():
        kind = next((kind for kind in _LINEN_LEAVES if isinstance(module, kind)), None)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            leaf = _LINEN_LEAVES[kind][name] if kind else ("params", name, None)
            if leaf is None or not (kind or isinstance(tensor, nn.Parameter)):
                continue  # no twin, or an index or a mask that the module has made
            collection, leaf_name, axes = leaf
            shape = tuple(tensor.shape[axis] for axis in axes or range(tensor.ndim))
            if names is None:
                module_path = re.sub(r"\.(\d+)", r"_\1", module_name)  # "blocks.0.mlp" -> "blocks_0.mlp"
                path = [*(module_path.split(".") if module_path else ()), leaf_name]
            else:
                path = _renamed(names, module_name, name, leaf_name if kind else None)
                if kind is nn.Conv2d and axes and _is_product(module):
                    shape = (shape[0] * shape[1] * shape[2], shape[3])
            yield (collection, *path), tensor, axes, shape


def _renamed(names, module_name, name, leaf_name):
    """The linen path of a module's tensor by the names of its body; without `leaf_name` the tensor has its own."""
    full_name = f"{module_name}.{name}" if module_name else name
    key = module_name if leaf_name else full_name
    if key not in names:
        raise ValueError(f"PyTorch's {full_name} has no name in linen; add it to the linen_names of its body")
    return [*names[key].split("/"), *([leaf_name] if leaf_name else ())]


def _is_product(convolution):
    """Whether the bodies with names of their own have it as a linear layer of patches: no kernel overlaps another."""
    return convolution.groups == 1 and convolution.kernel_size == convolution.stride


def _flatten(tree, prefix=()):
    """A tree of dicts as {path: leaf}."""
    if not hasattr(tree, "items"):
        return {prefix: tree}
    return {path: leaf for key, branch in tree.items() for path, leaf in _flatten(branch, (*prefix, key)).items()}


def _unflatten(leaves):
    tree = {}
    for path, leaf in leaves.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = leaf
    return tree


def _in_linen_layout(tensor, axes, shape):
    tensor = tensor.detach().cpu()
    return (tensor if axes is None else tensor.permute(axes)).numpy().reshape(shape).copy()


@torch.no_grad()
def copy_parameters(torch_model, variables):
    """Copies linen variables, params and batch_stats, into a model or a single module of this file.

    Raises:
      ValueError: a tensor without its twin, on either side, or one of another shape.
    """
    remaining = _flatten({key: variables[key] for key in ("params", "batch_stats") if key in variables})
    for path, tensor, axes, shape in _leaves(torch_model):
        name = "/".join(path)
        if path not in remaining:
            raise ValueError(f"PyTorch's {name} has no twin among the linen variables")
        array = np.asarray(remaining.pop(path), dtype=np.float32)
        if array.shape != shape:
            raise ValueError(f"{name} is {array.shape} in linen, but {shape} in PyTorch, in linen's order of axes")
        permuted = tensor if axes is None else tensor.permute(axes)  # a view
        permuted.copy_(torch.from_numpy(np.array(array)).reshape(permuted.shape))
    if remaining:
        raise ValueError(f"linen variables without a twin in PyTorch: {', '.join(map('/'.join, remaining))}")


def parameters(torch_model):
    """The model's parameters as a tree of numpy arrays in the names and layout of linen's params."""
    leaves = _leaves(torch_model)
    return _unflatten(
        {path[1:]: _in_linen_layout(tensor, axes, shape) for path, tensor, axes, shape in leaves if path[0] == "params"}
    )


def gradients(torch_model):
    """The gradients that `backward` left, as a tree of numpy arrays in the names and layout of linen's params.

    Raises:
      ValueError: a parameter that has received no gradient.
    """
    leaves = {}
    for path, tensor, axes, shape in _leaves(torch_model):
        if path[0] == "params":
            if tensor.grad is None:
                raise ValueError(f"PyTorch's {'/'.join(path)} has received no gradient")
            leaves[path[1:]] = _in_linen_layout(tensor.grad, axes, shape)
    return _unflatten(leaves)
