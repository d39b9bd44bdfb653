"""Configs of every body, embedding and reduction at a tiny size, for tests of what all of them must do."""

from stce_jax.models.bodies import BODIES
from stce_jax.models.reductions import REDUCTIONS, acts_before
from stce_jax.training import assemble as runs

SIZE = 16  # pixels of an image's side
PARTS = ("body", "embedding", "reduction")
# Options of the package's modules at a tiny size; modules of others come with defaults that fit such images.
TINY = {
    "body": {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24},
    "embedding": {"patch_size": 4, "stem_widths": (8, 16), "stem_strides": (2, 2)},
    "reduction": {"blocks": (1,), "initial_tokens": 16},
    "body svit": {"widths": (8, 16), "depths": (1, 1), "heads": (2, 2), "cells": (2, 1), "layer_scale": (0.0, 0.1)},
    "body swin": {"widths": (8, 16), "depths": (2, 1), "heads": (2, 2), "window": 2},
    "body cvt": {"widths": (8, 16), "depths": (1, 1), "heads": (2, 2)},
    "body deit": {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "distilled": True},
    "body cmt": {"widths": (8, 16), "depths": (1, 1), "heads": (2, 2), "key_strides": (2, 1), "mlp_ratios": (2.0, 2.0)},
    "body mobilevit": {"width": 8, "widths": (12, 16), "token_widths": (8, 8), "depths": (1, 1), "heads": (2, 2)},
    **{
        f"body {name}": {"widths": (8, 16), "heads": (2, 2), "kinds": kinds, "windows": (2, 2), "groups": (1, 2)}
        | {"kernels": (3, 3), "strides": (2, 1), "offset_ranges": (2.0, 0.0), "neighbourhoods": (3, 3)}
        | {"layer_scale": (0.0, 0.1)}
        for name, kinds in (("dat", ("S", "D")), ("datpp", ("N", "D")))
    },
    **dict.fromkeys(
        ("body focal", "body focal_conv"),
        {"widths": (8, 16), "depths": (1, 1), "heads": (2, 2), "layer_scale": (0.0, 0.1)}
        | {"window": 2, "focal_windows": (3, 1), "expands": (1, 0)},
    ),
}
TINY["body mobilevit"] |= {"strides": (2, 1), "expansion": 2, "head_width": 16}
TINY["embedding mobilevit"] = {"stem_blocks": 1}
# The embedding that each body comes with.
OWN = {name: getattr(module, "EMBEDDING", "patch") for name, module in BODIES.items()}


def config_of(names, data_dir):
    """A config on the digits; names: {"body", "embedding", "reduction": of each part, "options": more of the body}."""
    config = runs.load_config("digits", ["--config.batch_size=16", f"--config.data_dir={data_dir}"])
    with config.unlocked():
        config.image_size, config.model.name = SIZE, "vit_ti_patch"
        for part in PARTS:
            config.model[part].name = names[part]
            follows_body = part == "embedding" and names["embedding"] == OWN.get(names["body"]) != "patch"
            section = config.model[part].get(names[part] or "", {})  # a section is there for the package's own alone
            given = {} if follows_body else TINY[part]
            for option, value in {**given, **TINY.get(f"{part} {names[part]}", {})}.items():
                if option in section:
                    section[option] = value
        config.model.body.get(names["body"], {}).update(names.get("options", {}))
        if names["reduction"] in REDUCTIONS and not acts_before(REDUCTIONS[names["reduction"]]):
            config.model.body.vit.depth = 1  # which is enough, and compiled in half the time
            config.model.reduction.get(names["reduction"], {})["blocks"] = (0,)
    return config
