"""A run's workdir: where its config and checkpoints are, and whose workdir it is."""

from pathlib import Path
from typing import Any

from ml_collections import config_dict

from stce_jax.errors import ConfigError
from stce_jax.paths import first_line, open_path, write_text
from stce_jax.platform import terminal
from stce_jax.workdir import config as configuration
from stce_jax.workdir.checkpoints import Checkpoints

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


def checkpoints_in(workdir: str | Path) -> Any:
    """The directory of a workdir's checkpoints."""
    return open_path(workdir) / CHECKPOINTS


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether a run in the workdir would be resumed."""
    return bool(Checkpoints(checkpoints_in(workdir)).steps())


def is_workdir(path: str | Path) -> bool:
    """Whether a run has written its config there."""
    return (open_path(path) / CONFIG_FILE).exists()


def read_config(workdir: str | Path) -> config_dict.ConfigDict:
    """The config of a workdir, in this version's form.

    Raises:
      ConfigError: there is none, it is damaged, or of a newer form; or it uses a module that is not registered.
    """
    path = open_path(workdir) / CONFIG_FILE
    try:
        return configuration.from_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"{workdir} is no workdir of a run: cannot read {path.name}: {first_line(error)}") from error


def check_config(workdir: str | Path, config: config_dict.ConfigDict, *, allow_change: bool = False) -> None:
    """Refuses a workdir that belongs to another config; with `allow_change`, only prints what differs.

    Raises:
      ConfigError: it does, or its config cannot be read.
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


def write_config(workdir: str | Path, config: config_dict.ConfigDict) -> None:
    """Makes a workdir a config's; raises ConfigError if it cannot be written."""
    try:
        write_text(open_path(workdir) / CONFIG_FILE, configuration.to_json(config))
    except OSError as error:
        raise ConfigError(f"cannot write to workdir {workdir}: {first_line(error)}; give another --workdir") from error
