"""A run's workdir: where its config and checkpoints are, and whose workdir it is."""

import contextlib
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.paths import first_line, named_failures, open_path, read_bytes, write_text
from stce_jax.platform import terminal
from stce_jax.workdir import config as configuration
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.meta import IMPORTED
from stce_jax.workdir.parts import NotRegisteredError

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
_ADVICE = "put a copy back, or delete it: the config inside the newest checkpoint then counts"


def checkpoints_in(workdir: str | Path) -> Any:
    """The directory of a workdir's checkpoints."""
    return open_path(workdir) / CHECKPOINTS


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether a run in the workdir would be resumed."""
    return bool(Checkpoints(checkpoints_in(workdir)).steps())


def is_workdir(path: str | Path) -> bool:
    """Whether a run has written its config or a checkpoint there."""
    directory = open_path(path)
    return (directory / CONFIG_FILE).exists() or ((directory / CHECKPOINTS).is_dir() and has_checkpoint(path))


def read_config(workdir: str | Path) -> config_dict.ConfigDict:
    """The config of a workdir, in this version's form; without config.json that of its newest checkpoint, with a note.

    Raises:
      ConfigError: there is none, it is damaged, or of a newer form; or it uses a module that is not registered.
      CheckpointError: there is no config.json, and no checkpoint is whole.
    """
    path = open_path(workdir) / CONFIG_FILE
    try:
        text = read_bytes(path).decode()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and is_workdir(workdir):
            return _read_checkpoints_config(workdir)
        raise ConfigError(f"{workdir} is no workdir of a run: cannot read {path.name}: {first_line(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {first_line(error)}; {_ADVICE}") from error
    try:
        return configuration.from_json(text)
    except NotRegisteredError:
        raise
    except ConfigError as error:
        if "damaged" not in str(error):
            raise
        raise ConfigError(f"{workdir}: {error}; {_ADVICE}") from error


def _read_checkpoints_config(workdir: str | Path) -> config_dict.ConfigDict:
    checkpoints = Checkpoints(checkpoints_in(workdir))
    step = checkpoints.newest_whole()
    if step is None:  # deleted meanwhile
        raise ConfigError(f"{workdir} is no workdir of a run: it has no {CONFIG_FILE}")
    config = config_of(checkpoints.restore_meta(step, "config"), step)
    terminal.warn(f"{workdir} has no {CONFIG_FILE}; its config is that of checkpoint {step}")
    return config


def config_of(meta: dict[str, Any], step: int) -> config_dict.ConfigDict:
    """The config that a checkpoint was trained with, of what `restore_meta` read, "config" among it.

    Raises:
      CheckpointError: it is damaged.
      ConfigError: it is of a newer form, or uses a module that is not registered.
    """
    try:
        return configuration.from_dict(meta["config"])
    except NotRegisteredError:
        raise
    except ConfigError as error:
        if "damaged" not in str(error):
            raise
        text = str(error).replace(CONFIG_FILE, f"the config in checkpoint {step}")
        raise CheckpointError(f"{text}; use another checkpoint") from error


def check_config(workdir: str | Path, config: config_dict.ConfigDict, *, allow_change: bool = False) -> None:
    """Refuses a workdir that belongs to another config; with `allow_change`, only prints what differs.

    Raises:
      ConfigError: it does, or its config cannot be read.
      CheckpointError: see `read_config`.
    """
    if not is_workdir(workdir):
        return
    changed = "; ".join(configuration.differences(read_config(workdir), config))
    if changed and not allow_change:
        raise ConfigError(
            f"{workdir} belongs to another config ({changed}); use another workdir, that config, or "
            "--allow_config_change to continue with this one"
        )
    if changed:
        terminal.say(f"continuing with another config: {changed}")


def refuse_imported(workdir: str | Path) -> None:
    """Refuses to train in a workdir of `stce import`: it has no optimizer's state, and no recipe of the user's.

    Raises:
      ConfigError: it is one.
    """
    checkpoints, imported = Checkpoints(checkpoints_in(workdir)), False
    with contextlib.suppress(CheckpointError, ValueError):  # what cannot be read is refused where a run needs it
        imported = checkpoints.steps() == [0] and checkpoints.restore_meta(0, "fingerprint")["fingerprint"] == IMPORTED
    if imported:
        raise ConfigError(
            f"{workdir} holds weights of `stce import`, which has no run to resume; begin one with them in another: "
            f"stce train --config=CONFIG --workdir=DIR --init_from={workdir}"
        )


def write_config(workdir: str | Path, config: config_dict.ConfigDict) -> None:
    """Makes a workdir a config's; raises ConfigError if it cannot be written."""
    with named_failures(f"write to workdir {workdir}", "give another --workdir"):
        write_text(open_path(workdir) / CONFIG_FILE, configuration.to_json(config))
