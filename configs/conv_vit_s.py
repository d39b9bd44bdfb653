"""The paper's convolution stem and ViT-S on ImageNet100, its recipe in full; see stce_vit_s.py.

stce train --config=conv_vit_s --workdir=runs/conv                                            top-1 in the paper: 81.14%
stce train --config=conv_vit_s --workdir=runs/early --config.model.name=vit_s_earlyconv       EarlyConv's own stem
"""

from ml_collections import config_dict

from . import stce_vit_s


def get_config() -> config_dict.ConfigDict:
    config = stce_vit_s.get_config()
    config.model.name = "vit_s_conv"
    return config
