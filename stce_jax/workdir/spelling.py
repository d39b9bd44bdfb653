"""What a name that is no config key was meant to be: a key spelled otherwise, or another tool's name for one."""

import difflib
from collections.abc import Iterable

# Our key -> what timm, DeiT, big_vision, Hugging Face's Trainer and Lightning call it, in lower case with underscores.
_THEIRS = {
    "optimizer.learning_rate": ("lr", "blr", "base_lr", "peak_lr"),
    "optimizer.final_learning_rate": ("min_lr", "lr_min", "end_lr"),
    "optimizer.warmup_learning_rate": ("warmup_lr", "warmup_lr_init"),
    "optimizer.warmup_epochs": ("warmup", "num_warmup_epochs"),
    "optimizer.weight_decay": ("wd", "decay"),
    "optimizer.name": ("opt", "optim", "optimizer"),
    "optimizer.epsilon": ("opt_eps", "eps", "adam_epsilon"),
    "optimizer.beta1": ("adam_beta1",),
    "optimizer.beta2": ("adam_beta2",),
    "optimizer.clip_norm": ("clip_grad", "grad_clip", "max_grad_norm", "gradient_clip_val"),
    "optimizer.ema_decay": ("ema", "model_ema", "model_ema_decay"),
    "batch_size": ("b", "bs", "batch", "train_batch_size", "per_device_train_batch_size"),
    "eval_batch_size": ("vb", "validation_batch_size", "per_device_eval_batch_size"),
    "epochs": ("num_epochs", "total_epochs", "max_epochs", "num_train_epochs"),
    "accumulate": ("grad_accum_steps", "gradient_accumulation_steps", "accumulate_grad_batches"),
    "loader_threads": ("j", "workers", "num_workers", "dataloader_num_workers"),
    "image_size": ("img_size", "input_size", "resolution"),
    "log_every": ("log_interval", "logging_steps", "log_steps", "print_freq"),
    "eval_every": ("eval_interval", "eval_steps", "checkpoint_every"),
    "keep_checkpoints": ("save_total_limit", "checkpoint_hist"),
    "patience": ("early_stopping", "early_stopping_patience", "early_stop"),
    "model.name": ("model", "arch", "a"),
    "model.dtype": ("amp", "amp_dtype", "precision", "bf16"),
    "model.body.vit.remat": ("grad_checkpointing", "gradient_checkpointing"),
    "model.body.vit.drop_path": ("drop_path_rate", "stochastic_depth"),
    "model.body.vit.dropout": ("drop", "drop_rate"),
    "augment.rand_augment": ("aa", "auto_augment", "randaug"),
    "augment.erase": ("reprob", "random_erase"),
    "augment.label_smoothing": ("smoothing", "label_smoothing_factor"),
    "augment.mixup": ("mixup_alpha",),
    "augment.cutmix": ("cutmix_alpha",),
    "augment.flip": ("hflip",),
    "augment.repeats": ("repeated_aug", "aug_repeats"),
    "augment.three_augment": ("threeaugment",),
    "augment.eval_crop_fraction": ("crop_pct",),
    "augment.crop_area": ("scale",),
    "augment.crop_ratio": ("ratio",),
}
OF_OTHER_TOOLS = {name: key for key, names in _THEIRS.items() for name in names}


def meant(name: str, keys: Iterable[str]) -> str | None:
    """The config key that a name was meant to be: see `called`, or else the nearest. None if nothing is near.

    Args:
      name: such as "optimizer.lerning_rate", "lr" or "img-size", without "config." in front.
      keys: those that there are, such as "optimizer.learning_rate".
    """
    known = list(keys)
    if found := called(name, known):
        return found
    name = _plain(name)
    last_words = {key.rpartition(".")[2] for key in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], last_words, 1)
    return _most_alike(name, [key for key in known if key.rpartition(".")[2] in near])


def called(name: str, keys: Iterable[str]) -> str | None:
    """The config key whose last word a name is, or what another tool calls so."""
    known, name = list(keys), _plain(name)
    last = name.rpartition(".")[2]
    if same := [key for key in known if key.rpartition(".")[2] == last]:
        return _most_alike(name, same)
    found = OF_OTHER_TOOLS.get(last)
    return found if found in known else None


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _most_alike(name: str, keys: list[str]) -> str | None:
    """Of several the one that is nearest as a whole; of equals the shortest."""
    return min(keys, key=lambda key: (-difflib.SequenceMatcher(None, name, key).ratio(), len(key)), default=None)
