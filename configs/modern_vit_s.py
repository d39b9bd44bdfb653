"""ViT-S at 224 pixels by the recipe for small data, for any class folders and an accelerator.

stce train --config=modern_vit_s --data_dir=DIR --workdir=runs/modern_s     DIR holds train/<class>/ and val/<class>/

It is the paper's `stce_vit_s` with other choices, from the literature. NONE OF THEM IS MEASURED HERE YET, see
`modern.py` and docs/recipe.md.
"""

from ml_collections import config_dict

from . import stce_vit_s


def get_config() -> config_dict.ConfigDict:
    config = stce_vit_s.get_config()
    config.dataset = "folder"
    config.model.dtype = "bfloat16"  # half the memory, twice the speed on accelerators; parameters stay float32
    body = config.model.body.vit
    body.pooling = "mean"  # as in modern.py
    body.position_embedding = "rope_axial"  # as in modern.py
    config.optimizer.name = "muon"  # as in modern.py
    config.augment.repeats = 1  # repeated augmentation pays at batches of a thousand (Hoffer et al. 2020), not at 128
    config.augment.rand_augment = ""  # 3-Augment takes its place (DeiT III)
    config.augment.three_augment = True
    config.augment.color_jitter = 0.3  # DeiT III
    config.augment.erase = 0.0  # DeiT III has none
    config.augment.mixup = 0.8  # DeiT's; the STCE paper has them the other way round
    config.augment.cutmix = 1.0
    return config.lock()
