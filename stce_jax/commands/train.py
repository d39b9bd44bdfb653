"""The words of `stce train`."""

from stce_jax.commands import common
from stce_jax.processes.stopping import ends_at_once

HELP = "train a model, or go on with a run that was stopped"
EXAMPLES = """
  stce train --config=digits --workdir=runs/digits
  stce train --config=digits --workdir=runs/tuned --init_from=runs/digits --config.image_size=48
  stce train --config=digits:patch --workdir=runs/patch --config.seed=1
  stce train --config=digits --workdir=runs/once --config.model.embedding.stce.iterations=1"""


def add_arguments(verb):
    common.add_config(verb)
    verb.add_argument("--workdir", required=True, help="directory of the run; made if it is not there")
    verb.add_argument("--init_from", default="", help="run, .safetensors or .npz file whose weights to begin with")
    verb.add_argument(
        "--allow_config_change", action="store_true", help="go on although the workdir began with another config"
    )
    verb.usage = (
        "stce train --config=CONFIG --workdir=DIR [--data_dir=DIR] [--init_from=RUN|FILE] [--allow_config_change] "
        "[--config.KEY=VALUE ...]"
    )


def run(arguments, overrides):
    if arguments.init_from:
        overrides = [*overrides, f"--config.init_from={arguments.init_from}"]
    with ends_at_once(arguments.leave):
        from stce_jax.processes import peers as processes

        processes.start()  # before anything that may be refused: the others are to hear of it
        config = common.load_config(arguments, overrides)
        from stce_jax.verbs.train import train

        leave = arguments.leave if arguments.own else None
        train(config, arguments.workdir, allow_config_change=arguments.allow_config_change, leave=leave)
