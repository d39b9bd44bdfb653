"""The arguments of `stce train`."""

import argparse
from collections.abc import Sequence

from stce_jax.commands import common
from stce_jax.errors import ConfigError, check_range
from stce_jax.processes import peers as processes
from stce_jax.processes.stopping import exit_on_signal

HELP = "train a model, or resume a run that was stopped"
EXAMPLES = """
  stce train --config=digits --workdir=runs/digits
  stce train --config=digits --workdir=runs/tuned --init_from=runs/digits --config.image_size=48
  stce train --config=small_folder --data_dir=photos --workdir=runs/photos --minutes=30
  stce train --config=digits:patch --workdir=runs/patch --config.seed=1
  stce train --config=digits --workdir=runs/once --config.model.embedding.stce.iterations=1"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_config(verb)
    verb.add_argument("--workdir", required=True, help="directory of the run; made if it does not exist")
    verb.add_argument("--init_from", default="", help="weights to begin with: a run, or what stce import takes")
    verb.add_argument(
        "--allow_config_change", action="store_true", help="resume although the workdir began with another config"
    )
    verb.add_argument("--minutes", type=float, help="plan a new run's epochs so that all of it takes so long")
    verb.usage = (
        "stce train --config=CONFIG --workdir=DIR [--data_dir=DIR] [--minutes=M] [--init_from=RUN|FILE] "
        "[--allow_config_change] [--config.KEY=VALUE ...]"
    )


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    if arguments.minutes is not None:
        overrides = with_minutes(arguments.minutes, overrides)
    if arguments.init_from:
        overrides = [*overrides, f"--config.init_from={arguments.init_from}"]
    with exit_on_signal(arguments.exit_process):
        processes.start()  # before anything that may be refused: the others must hear of it
        config = common.load_config(arguments, overrides)
        from stce_jax.verbs.train import train

        exit_process = arguments.exit_process if arguments.own_process else None
        train(config, arguments.workdir, allow_config_change=arguments.allow_config_change, exit_process=exit_process)


def with_minutes(minutes: float, overrides: Sequence[str]) -> list[str]:
    """Overrides with --minutes among them; keys that the plan chooses must not be given, too, or its list goes.

    Raises:
      ConfigError: epochs are given, or it is no time.
    """
    from stce_jax.training.candidates import CANDIDATES
    from stce_jax.training.plan import LONGEST, SHORTEST
    from stce_jax.workdir.migration import flag_key

    check_range("--minutes", minutes, SHORTEST, LONGEST)
    given = {flag_key(word) for word in overrides}
    if "epochs" in given:
        raise ConfigError("--minutes plans the epochs, and --config.epochs gives them; leave one of them out")
    own = {key for candidates in CANDIDATES.values() for key in candidates[0].keys}
    unplanned = ["--config.plan="] if given & own and "plan" not in given else []
    return [*unplanned, *overrides, f"--config.minutes={minutes}"]
