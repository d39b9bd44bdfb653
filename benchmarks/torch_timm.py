"""Swin, MobileViT and DeiT as timm has them, sized by the package's options. timm is imported when a model is built."""

import dataclasses

# What timm's models leave out of the package's options, by body.
FIXED = {
    "swin": {"downsample": "merging"},
    "mobilevit": {"head_dropout": 0.0},
    "deit": {"pooling": "class"},
}


def import_timm():
    """timm; ImportError of one line where it is not there, or cannot be imported."""
    try:
        import timm
    except Exception as error:  # an ImportError, or whatever a torchvision of another PyTorch raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImportError(
            f"the PyTorch models of Swin, MobileViT and DeiT are timm's, which cannot be imported ({reason}); "
            "pip install timm, with the torchvision of your PyTorch"
        ) from error
    return timm


def build(body, num_classes, image_size, options):
    """The model of these options of the package, for images of (height, width) pixels."""
    make = {"swin": _swin, "mobilevit": _mobilevit, "deit": _deit}[body]
    return make(import_timm(), num_classes, image_size, options)


def linen_names(body, options):
    """{name here: path there} of the modules that have parameters, and of parameters that belong to the model."""
    return {"swin": _swin_names, "mobilevit": _mobilevit_names, "deit": _deit_names}[body](options)


def _swin(timm, num_classes, image_size, options):
    widths = options["widths"]
    if any(width != widths[0] * 2**stage for stage, width in enumerate(widths)):
        raise NotImplementedError(f"timm's Swin doubles its width from stage to stage; widths are {widths}")
    sides = [side // options["patch_size"] for side in image_size]
    for stage in range(len(widths)):
        if min(sides) < options["window"]:
            raise NotImplementedError(
                f"timm's Swin has smaller tables where a map is smaller than a window: stage {stage + 1} is "
                f"{sides[0]}x{sides[1]}, windows are {options['window']}; take larger images"
            )
        sides = [-(-side // 2) for side in sides]
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=num_classes,
        img_size=image_size,
        patch_size=options["patch_size"],
        embed_dim=widths[0],
        depths=options["depths"],
        num_heads=options["heads"],
        window_size=options["window"],
        mlp_ratio=options["mlp_ratio"],
        drop_path_rate=0.0,
    )


def _swin_names(options):
    names = {
        "patch_embed.proj": "embedding/projection",
        "patch_embed.norm": "embedding_norm",
        "norm": "norm",
        "head.fc": "head",
    }
    done = 0
    for stage, depth in enumerate(options["depths"]):
        if stage:
            names[f"layers.{stage}.downsample.norm"] = f"downsampling_{stage - 1}/norm"
            names[f"layers.{stage}.downsample.reduction"] = f"downsampling_{stage - 1}/projection"
        for index in range(depth):
            theirs, ours = f"layers.{stage}.blocks.{index}", f"blocks_{done + index}"
            names |= _block_names(theirs, ours)
            names[f"{theirs}.attn.relative_position_bias_table"] = f"{ours}/attention/bias_table"
        done += depth
    return names


def _block_names(theirs, ours):
    """Of a plain transformer block."""
    return {
        f"{theirs}.norm1": f"{ours}/attention_norm",
        f"{theirs}.attn.qkv": f"{ours}/attention/qkv",
        f"{theirs}.attn.proj": f"{ours}/attention/out",
        f"{theirs}.norm2": f"{ours}/mlp_norm",
        f"{theirs}.mlp.fc1": f"{ours}/mlp/in",
        f"{theirs}.mlp.fc2": f"{ours}/mlp/out",
    }


def _deit(timm, num_classes, image_size, options):
    return timm.create_model(
        f"deit_tiny{'_distilled' if options['distilled'] else ''}_patch16_224",
        num_classes=num_classes,
        img_size=image_size,
        patch_size=options["patch_size"],
        embed_dim=options["width"],
        depth=options["depth"],
        num_heads=options["heads"],
        mlp_ratio=options["mlp_dim"] / options["width"],
    )


def _deit_names(options):
    names = {
        "patch_embed.proj": "embedding/projection",
        "cls_token": "class_token",
        "dist_token": "distillation_token",
        "pos_embed": "position_embedding",
        "norm": "norm",
        "head": "head",
        "head_dist": "distillation_head",
    }
    for index in range(options["depth"]):
        names |= _block_names(f"blocks.{index}", f"blocks_{index}")
    return names


def _mobilevit(timm, num_classes, image_size, options):
    del image_size  # any works
    if options["stem_strides"][0] != 2:
        raise NotImplementedError(f"timm's MobileViT begins with stride 2; stem_strides are {options['stem_strides']}")
    byobnet, published = timm.models.byobnet, timm.models.mobilevit.model_cfgs["mobilevit_s"]
    residual = dataclasses.replace(published.blocks[0], br=float(options["stem_expansion"]))
    stem = zip(options["stem_widths"][1:], options["stem_strides"][1:], strict=True)
    blocks = [dataclasses.replace(residual, c=width, s=stride) for width, stride in stem]
    blocks[-1] = dataclasses.replace(blocks[-1], d=options["stem_blocks"])
    kinds = ("widths", "token_widths", "depths", "heads", "strides")
    for width, tokens, depth, heads, stride in zip(*(options[kind] for kind in kinds), strict=True):
        first, second = published.blocks[-1]
        transformer = {"transformer_dim": tokens, "transformer_depth": depth, "num_heads": heads}
        blocks.append(
            (
                dataclasses.replace(first, c=width, s=stride, br=float(options["expansion"])),
                dataclasses.replace(second, c=width, block_kwargs={**second.block_kwargs, **transformer}),
            )
        )
    whole = {"stem_chs": options["stem_widths"][0], "num_features": options["head_width"]}
    return byobnet.ByobNet(dataclasses.replace(published, blocks=tuple(blocks), **whole), num_classes=num_classes)


def _mobilevit_names(options):
    names = {"stem.conv": "embedding/convolution", "stem.bn": "embedding/norm"}
    names |= {"final_conv.conv": "projection", "final_conv.bn": "norm", "head.fc": "head"}

    def residual(theirs, ours):
        layers = {"conv1_1x1": "expand", "conv2_kxk": "depthwise", "conv3_1x1": "project"}
        for timm_name, own in layers.items():
            names[f"{theirs}.{timm_name}.conv"] = f"{ours}/{own}"
            names[f"{theirs}.{timm_name}.bn"] = f"{ours}/{own}_norm"

    stem = len(options["stem_widths"]) - 1
    for stage in range(stem):
        for index in range(options["stem_blocks"] if stage == stem - 1 else 1):
            residual(f"stages.{stage}.{index}", f"embedding/stage_{stage}_block_{index}")
    for stage, depth in enumerate(options["depths"]):
        residual(f"stages.{stem + stage}.0", f"residuals_{stage}")
        theirs, ours = f"stages.{stem + stage}.1", f"blocks_{stage}"
        for timm_name, own in {"conv_kxk": "local", "conv_proj": "narrow", "conv_fusion": "fusion"}.items():
            names[f"{theirs}.{timm_name}.conv"] = f"{ours}/{own}"
            names[f"{theirs}.{timm_name}.bn"] = f"{ours}/{own}_norm"
        names |= {f"{theirs}.conv_1x1": f"{ours}/widen", f"{theirs}.norm": f"{ours}/norm"}
        for index in range(depth):
            layer, own = f"{theirs}.transformer.{index}", f"{ours}/layers_{index}"
            names |= {
                f"{layer}.norm1": f"{own}/attention_norm",
                f"{layer}.attn.qkv": f"{own}/qkv",
                f"{layer}.attn.proj": f"{own}/out",
                f"{layer}.norm2": f"{own}/mlp_norm",
                f"{layer}.mlp.fc1": f"{own}/mlp_in",
                f"{layer}.mlp.fc2": f"{own}/mlp_out",
            }
    return names
