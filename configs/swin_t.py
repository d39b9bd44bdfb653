"""Swin-T on ImageNet100 by the recipe of its published code for ImageNet-1k (Liu et al. 2021, arXiv 2103.14030).

stce train --config=swin_t --workdir=runs/swin
stce train --config=swin_t --workdir=runs/swin_stce --config.model.name=swin_t_stce      with STCE as its embedding
stce train --config=swin_t --workdir=runs/down --config.model.body.swin.downsample=stce  clustering between the stages

The published batch is of 1,024 images, on fewer GPUs with --config.accumulate=8. With another batch the peak of the
learning rate follows it; in the published code the first and the last learning rate do so, too, 5e-7 and 5e-6 times
batch_size / 512.
"""

from ml_collections import config_dict

from . import default


def get_config() -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "imagenet100"
    config.model.name = "swin_t"  # with drop path 0.2
    config.batch_size = 1024

    config.optimizer.learning_rate = 5e-4  # times batch_size / 512
    config.optimizer.learning_rate_scaling = "linear"
    config.optimizer.warmup_epochs = 20.0
    config.optimizer.warmup_learning_rate = 1e-6
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.clip_norm = 5.0
    config.optimizer.ema_decay = 0.0

    config.augment.repeats = 1
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    return config.lock()
