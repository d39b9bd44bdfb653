"""Any class folders, by the recipe for small data: what the search of docs/recipe.md is for.

stce train --config=modern --data_dir=DIR --workdir=runs/modern     DIR holds train/<class>/ and val/<class>/
stce train --config=modern:patch ...                                another embedding: stce, conv or patch

It is `small_folder` with other choices. They are from the literature so far, for other models and more images; the
comments say from where. NONE OF THEM IS MEASURED HERE YET: what each gains on small data the search says, and what it
refuses goes out again.
"""

from ml_collections import config_dict

from . import small_folder

VARIANTS = small_folder.VARIANTS


def get_config(embedding: str = "stce") -> config_dict.ConfigDict:
    config = small_folder.get_config(embedding)
    if embedding == "stce":
        config.plan = "class_folders"  # what --minutes chooses image size and model from; unused without it
    body = config.model.body.vit
    # The mean of the tokens in place of a class token: Beyer, Zhai and Kolesnikov 2022, "Better plain ViT baselines".
    body.pooling = "mean"
    # Angles of rows and columns: Heo, Park, Han and Yun 2024, "Rotary position embedding for vision transformer".
    body.position_embedding = "rope_axial"
    # Muon on matrices, AdamW on the rest: Jordan et al. 2024. About a third less time to the same loss there.
    config.optimizer.name = "muon"
    # Grey, solarised or blurred: Touvron, Cord and Jegou 2022, "DeiT III".
    config.augment.three_augment = True
    # Light mixing: most images stay almost whole. The full amount needs runs that are longer than small ones are.
    config.augment.mixup = 0.2
    config.augment.cutmix = 0.2
    return config.lock()
