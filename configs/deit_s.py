"""DeiT-S with DeiT's own recipe (arXiv 2012.12877 and its code), on ImageNet100.

stce train --config=deit_s --workdir=runs/deit
stce train --config=deit_s --workdir=runs/distilled --config.model.name=deit_s_distilled        two tokens, two heads
stce train --config=deit_s --workdir=runs/deit1k --config.dataset=imagenet2012 --config.batch_size=1024   79.9% there

Different from default.py: the learning rate, 5e-4 for 512 images, and mixup 0.8 and CutMix 1.0, which the STCE paper
has the other way round. DeiT's batch is 1024; the learning rate follows it. There is no teacher: the distilled models,
81.2% with DeiT's, train on the labels alone here.
"""

from ml_collections import config_dict

from . import default


def get_config() -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "imagenet100"
    config.model.name = "deit_s"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_scaling = "linear"
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    return config.lock()
