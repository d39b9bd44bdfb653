"""MobileViT-S on ImageNet100 with the recipe of its authors, as far as this package can follow it.

stce train --config=mobilevit_s --workdir=runs/mobilevit
stce train --config=mobilevit_s --workdir=runs/mobilevit_stce --config.model.name=mobilevit_s_stce

Source: Mehta and Rastegari 2022, arXiv 2110.02178, and the published code's configuration: images of 256 pixels, 300
epochs, batches of 1024 images, AdamW with weight decay 0.01, learning rate from 2e-4 up to 2e-3 in 20,000 steps (16
epochs of ImageNet) and down to 2e-4, label smoothing 0.1, crops and flips alone, dropout 0.1, moving average 0.9995.
Here the batch is 128 and rates are 2e-3 * batch / 1024, and a tenth of it at both ends (for other batches, set those).

What differs: the authors draw the size of each batch from 160 to 320 pixels, and there is no such sampler here; their
weight decay acts on biases and norms, too, ours on kernels alone; their images are not normalised by mean and standard
deviation, ours are; they take crops of bilinear interpolation, ours are resized as those of all recipes here.
"""

from ml_collections import config_dict

from . import default


def get_config() -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "imagenet100"
    config.image_size = 256
    config.model.name = "mobilevit_s"
    optimizer = config.optimizer
    optimizer.learning_rate = 1e-3
    optimizer.learning_rate_scaling = "linear"
    optimizer.warmup_epochs = 16.0
    optimizer.warmup_learning_rate = 2.5e-5
    optimizer.final_learning_rate = 2.5e-5
    optimizer.weight_decay = 0.01
    optimizer.ema_decay = 0.9995
    augment = config.augment
    augment.eval_crop_fraction = 256 / 288
    augment.repeats = 1
    augment.rand_augment = ""
    augment.erase = 0.0
    augment.mixup = 0.0
    augment.cutmix = 0.0
    return config.lock()
