"""The paper's super-token convolution ViT-S on ImageNet100, its recipe in full, on two GPUs.

stce prepare imagenet100 --source=PATH --classes=kaggle
stce train --config=stce_vit_s --workdir=runs/stce                                    top-1 in the paper: 83.52%
stce train --config=stce_vit_s --workdir=runs/bf16 --config.model.dtype=bfloat16      the same in bfloat16

130,000 images of 224 pixels, 300 epochs of 1,015.6 steps of 128 images: 304,688 steps, 39 million views.
All devices are used; the batch is the global one, 64 a GPU on two.
"""

from ml_collections import config_dict

from . import default


def get_config() -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "imagenet100"
    config.model.name = "vit_s_stce"
    return config.lock()
