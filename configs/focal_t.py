"""Focal-T on ImageNet100 with its published recipe; `focal_conv_t` by --config.model.name=focal_conv_t.

stce train --config=focal_t --workdir=runs/focal

Source: the published code of Yang et al. 2021 (arXiv 2107.00641), whose values are Swin's; see `swin_t` for batches.
"""

from ml_collections import config_dict

from . import swin_t


def get_config() -> config_dict.ConfigDict:
    config = swin_t.get_config()
    config.model.name = "focal_t"  # with drop path 0.2
    return config
