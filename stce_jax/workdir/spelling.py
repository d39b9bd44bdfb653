"""What a name that is no config key was meant to be: a key spelled otherwise, or another tool's name for one."""

import difflib
from collections.abc import Iterable

# What timm, DeiT, big_vision, Hugging Face's Trainer and Lightning call it, in lower case with underscores -> our key.
OF_OTHER_TOOLS = {
    **dict.fromkeys(("lr", "blr", "base_lr", "peak_lr"), "optimizer.learning_rate"),
    **dict.fromkeys(("min_lr", "lr_min", "end_lr"), "optimizer.final_learning_rate"),
    **dict.fromkeys(("warmup_lr", "warmup_lr_init"), "optimizer.warmup_learning_rate"),
    **dict.fromkeys(("warmup", "num_warmup_epochs"), "optimizer.warmup_epochs"),
    **dict.fromkeys(("wd", "decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("opt", "optim", "optimizer"), "optimizer.name"),
    **dict.fromkeys(("opt_eps", "eps", "adam_epsilon"), "optimizer.epsilon"),
    **dict.fromkeys(("adam_beta1",), "optimizer.beta1"),
    **dict.fromkeys(("adam_beta2",), "optimizer.beta2"),
    **dict.fromkeys(("clip_grad", "grad_clip", "max_grad_norm", "gradient_clip_val"), "optimizer.clip_norm"),
    **dict.fromkeys(("ema", "model_ema", "model_ema_decay"), "optimizer.ema_decay"),
    **dict.fromkeys(("b", "bs", "batch", "train_batch_size", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(("vb", "validation_batch_size", "per_device_eval_batch_size"), "eval_batch_size"),
    **dict.fromkeys(("num_epochs", "total_epochs", "max_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("grad_accum_steps", "gradient_accumulation_steps", "accumulate_grad_batches"), "accumulate"),
    **dict.fromkeys(("j", "workers", "num_workers", "dataloader_num_workers"), "loader_threads"),
    **dict.fromkeys(("img_size", "input_size", "resolution"), "image_size"),
    **dict.fromkeys(("log_interval", "logging_steps", "log_steps", "print_freq"), "log_every"),
    **dict.fromkeys(("eval_interval", "eval_steps", "checkpoint_every"), "eval_every"),
    **dict.fromkeys(("save_total_limit", "checkpoint_hist"), "keep_checkpoints"),
    **dict.fromkeys(("model", "arch", "a"), "model.name"),
    **dict.fromkeys(("amp", "amp_dtype", "precision", "bf16"), "model.dtype"),
    **dict.fromkeys(("grad_checkpointing", "gradient_checkpointing"), "model.body.vit.remat"),
    **dict.fromkeys(("drop_path_rate", "stochastic_depth"), "model.body.vit.drop_path"),
    **dict.fromkeys(("drop", "drop_rate"), "model.body.vit.dropout"),
    **dict.fromkeys(("aa", "auto_augment", "randaug"), "augment.rand_augment"),
    **dict.fromkeys(("reprob", "random_erase"), "augment.erase"),
    **dict.fromkeys(("smoothing", "label_smoothing_factor"), "augment.label_smoothing"),
    **dict.fromkeys(("mixup_alpha",), "augment.mixup"),
    **dict.fromkeys(("cutmix_alpha",), "augment.cutmix"),
    **dict.fromkeys(("hflip",), "augment.flip"),
    **dict.fromkeys(("repeated_aug", "aug_repeats"), "augment.repeats"),
    **dict.fromkeys(("threeaugment",), "augment.three_augment"),
    **dict.fromkeys(("crop_pct",), "augment.eval_crop_fraction"),
    **dict.fromkeys(("scale",), "augment.crop_area"),
    **dict.fromkeys(("ratio",), "augment.crop_ratio"),
}


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
