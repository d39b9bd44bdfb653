"""CvT-13 with the recipe of its code (arXiv 2103.15808, microsoft/CvT, cvt-13-224x224.yaml), on ImageNet100.

stce train --config=cvt_13 --workdir=runs/cvt                                                81.6% on ImageNet in CvT
stce train --config=cvt_13 --workdir=runs/cvt_stce --config.model.name=cvt_13_stce           with super tokens

The yaml's learning rate is 2.5e-4 with 256 images a GPU; here it is for 256 images of the whole batch, which is DeiT's
rule. Left out are the ten epochs at the smallest learning rate after the cosine's 300. Repeated
augmentation and the moving average of the weights are off here; all else is as in default.py.
"""

from ml_collections import config_dict

from . import default


def get_config() -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "imagenet100"
    config.batch_size = 256
    config.model.name = "cvt_13"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_scaling = "linear"
    config.optimizer.ema_decay = 0.0
    config.augment.repeats = 1
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    return config.lock()
