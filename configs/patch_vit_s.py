"""The paper's patch embedding and ViT-S on ImageNet100, its recipe in full; see stce_vit_s.py.

stce train --config=patch_vit_s --workdir=runs/patch        top-1 in the paper: 78.44%
"""

from ml_collections import config_dict

from . import stce_vit_s


def get_config() -> config_dict.ConfigDict:
    config = stce_vit_s.get_config()
    config.model.name = "vit_s_patch"
    return config
