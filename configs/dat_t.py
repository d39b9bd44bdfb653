"""DAT-T on ImageNet100 with its published recipe; DAT++ by --config.model.name=datpp_t.

stce train --config=dat_t --workdir=runs/dat

Source: the published code of Xia et al. 2022 (arXiv 2201.00520) and of DAT++ (2309.01430), whose values are Swin's.
The published batch is of 1,024 images, on fewer GPUs with --config.accumulate=8. With another batch the peak of the
learning rate follows it; in the published code the first and the last learning rate do so, too, 5e-7 and 5e-6 times
batch_size / 512.
"""

from ml_collections import config_dict

from . import default


def get_config() -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "imagenet100"
    config.model.name = "dat_t"  # with drop path 0.2
    config.batch_size = 1024

    optimizer = config.optimizer
    optimizer.learning_rate = 5e-4  # times batch_size / 512
    optimizer.learning_rate_scaling = "linear"
    optimizer.warmup_epochs = 20.0
    optimizer.warmup_learning_rate = 1e-6
    optimizer.final_learning_rate = 1e-5
    optimizer.clip_norm = 5.0
    optimizer.ema_decay = 0.0

    config.augment.repeats = 1
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    return config.lock()
