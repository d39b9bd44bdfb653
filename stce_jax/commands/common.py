"""Arguments that mean the same in every verb that has them."""


def add_config(verb):
    """--config, --data_dir and --config.KEY=VALUE, for `load_config`."""
    verb.add_argument("--config", required=True, help="a shipped config (digits, stce_vit_s, ...) or a .py file")
    add_data_dir(verb, "where the images are; see configs/default.py, dataset")
    verb.set_defaults(takes_overrides=True)


def load_config(arguments, overrides):
    """The ConfigDict that the words of `add_config` give."""
    from stce_jax.configuration import load_config

    if arguments.data_dir:
        overrides = [*overrides, f"--config.data_dir={arguments.data_dir}"]
    return load_config(arguments.config, overrides)


def add_data_dir(verb, help_text):
    """--data_dir alone."""
    verb.add_argument("--data_dir", default="", help=help_text)


def add_run(verb, *, required=True):
    """--workdir, --checkpoint and --ema, as `load_run` takes them; see `of_run`."""
    verb.add_argument("--workdir", required=required, default="", help="directory of the run")
    verb.add_argument("--checkpoint", default="last", help="last (the default), best, or a step")
    verb.add_argument("--ema", action="store_true", help="use the weights' moving average")


def of_run(arguments):
    """The keyword arguments `workdir`, `checkpoint` and `ema` that the words of `add_run` give."""
    return {"workdir": arguments.workdir, "checkpoint": arguments.checkpoint, "ema": arguments.ema}
