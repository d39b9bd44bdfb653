"""Arguments that mean the same in every verb that has them, and what is said where images cannot be read."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stce_jax.errors import ConfigError, DataError
from stce_jax.platform import terminal

if TYPE_CHECKING:
    from ml_collections.config_dict import ConfigDict


def add_config(verb: argparse.ArgumentParser) -> None:
    """--config, --data_dir and --config.KEY=VALUE, for `load_config`."""
    verb.add_argument("--config", required=True, help="a shipped config (digits, stce_vit_s, ...) or a .py file")
    add_data_dir(verb, "where the images are; see configs/default.py, dataset")
    verb.set_defaults(takes_overrides=True)


def load_config(arguments: argparse.Namespace, overrides: Sequence[str]) -> "ConfigDict":
    """The ConfigDict that the words of `add_config` give; options of modules that it does not choose are refused."""
    from stce_jax.training.assemble import load_config
    from stce_jax.workdir.parts import check_read

    if arguments.data_dir:
        overrides = [*overrides, f"--config.data_dir={arguments.data_dir}"]
    config = load_config(arguments.config, overrides)
    check_read(overrides, config)
    return config


def add_data_dir(verb: argparse.ArgumentParser, help_text: str) -> None:
    """--data_dir alone."""
    verb.add_argument("--data_dir", default="", help=help_text)


def add_run(verb: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--workdir, --checkpoint and --ema, for `of_run`, and --config, for `register_modules`."""
    verb.add_argument("--workdir", required=required, default="", help="directory of the run")
    verb.add_argument("--checkpoint", default="last", help="last (the default), best, or a step")
    verb.add_argument("--ema", action="store_true", help="use the weights' moving average")
    add_modules(verb)


def of_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments `workdir`, `checkpoint` and `ema` that the words of `add_run` give."""
    return {"workdir": arguments.workdir, "checkpoint": arguments.checkpoint, "ema": arguments.ema}


def add_reduction(verb: argparse.ArgumentParser) -> None:
    """--reduction alone, for verbs whose function has a keyword of that name."""
    text = "use another token reduction than the run was trained with: topk:keep_rate=0.5,blocks=3,6; or none"
    verb.add_argument("--reduction", default="", metavar="NAME", help=text)


def add_tta(verb: argparse.ArgumentParser) -> None:
    """--tta alone, for verbs whose function has a keyword of that name."""
    text = "average the probabilities of several views: flip, crops (five), or flip,crops (ten)"
    verb.add_argument("--tta", default="", metavar="VIEWS", help=text)


def add_modules(verb: argparse.ArgumentParser) -> None:
    """--config, for `register_modules`."""
    text = "config file that registers the modules of a run that are not part of stce_jax"
    verb.add_argument("--config", default="", metavar="FILE", help=text)


def register_modules(arguments: argparse.Namespace) -> None:
    """Runs the config file of `add_modules`, so that runs with its modules can be opened; raises ConfigError."""
    if arguments.config:
        from stce_jax.workdir.config import run_config_file

        run_config_file(arguments.config)


def add_images(verb: argparse.ArgumentParser) -> None:
    """PATH..., --batch_size, and those of `add_run`."""
    verb.add_argument("paths", nargs="+", metavar="PATH", help="image files, and folders with images at any depth")
    add_run(verb)
    verb.add_argument("--batch_size", type=int, default=64, metavar="N", help="images computed at a time (default: 64)")


def complain(failures: list[Exception]) -> Callable[[Exception], None]:
    """A function that prints an error as one line on standard error, and adds it to a list."""

    def report(error: Exception) -> None:
        failures.append(error)
        terminal.warn(error)

    return report


def end_with(failures: list[Exception], count: int) -> None:
    """Raises DataError if some of `count` images could not be read, see `complain`."""
    if failures:
        raise DataError(f"{len(failures)} of {count} images could not be read, see above; the others are done")


@contextlib.contextmanager
def output_file(path: str) -> Iterator[Any]:
    """A binary file that appears whole, see `whole_file`; "-" is standard output, and devices are written to.

    Raises:
      ConfigError: it cannot be written.
    """
    from stce_jax.paths import first_line, is_remote, remedy, whole_file

    if path == "-":
        yield terminal.Data()
        return
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(0, "it is a directory")
        special = os.path.exists(path) and not os.path.isfile(path)  # a pipe, or /dev/null: nothing to be replaced
        with open(path, "wb") if special else whole_file(path if is_remote(path) else os.path.realpath(path)) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {first_line(error)}; {remedy(error, 'give another file')}") from error
