"""DAT-T on ImageNet100 with its published recipe; DAT++ by --config.model.name=datpp_t.

stce train --config=dat_t --workdir=runs/dat

Source: the published code of Xia et al. 2022 (arXiv 2201.00520) and of DAT++ (2309.01430), whose values are Swin's; see
`swin_t` for batches.
"""

from ml_collections import config_dict

from . import swin_t


def get_config() -> config_dict.ConfigDict:
    config = swin_t.get_config()
    config.model.name = "dat_t"  # with drop path 0.2
    return config
