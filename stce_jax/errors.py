"""What can go wrong for a user, each kind with the exit code that `stce` ends with.

The message of such an error is one line: the cause, and what to do about it. The checks of config values are here, too:
every package makes them for its own options.
"""

from collections.abc import Sequence


class StceError(Exception):
    """A user's mistake or an outside fault; `stce` prints its message alone and exits with `exit_code`."""

    exit_code = 1


class ConfigError(StceError, ValueError):
    """A bad config, option or argument."""

    exit_code = 2


class DataError(StceError):
    """A dataset or image that is missing, empty, inconsistent or unreadable."""

    exit_code = 3


class CheckpointError(StceError):
    """A checkpoint that is missing, unreadable, or of another model."""

    exit_code = 4


class DivergedError(StceError):
    """The loss is no longer finite, or jumps, however often the run goes back."""

    exit_code = 5


class PreemptedError(StceError):
    """Asked to stop (SIGTERM or SIGINT): what there is to save is saved, and the same command goes on."""

    exit_code = 75


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Refuses a config value that is none of the choices.

    Raises:
      ConfigError: it is not.
    """
    if value not in choices:
        raise ConfigError(f"config.{key} is {value!r}; it must be one of {', '.join(choices)}")


def check_range(key: str, value: float | None, low: float, high: float | None = None) -> None:
    """Refuses a config value outside of low..high, NaN included; None, a value that is not set, passes.

    Raises:
      ConfigError: it is outside.
    """
    if value is not None and not (low <= value and (high is None or value <= high)):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"config.{key} is {value}; it must be {bounds}")


def check_pair(key: str, pair: Sequence[float], high: float) -> None:
    """Refuses a config value that is not (minimum, maximum), both above 0 and at most `high`.

    Raises:
      ConfigError: it is not.
    """
    numbers = len(pair) == 2 and all(isinstance(number, int | float) for number in pair)
    if not (numbers and 0 < pair[0] <= pair[1] <= high):
        raise ConfigError(f"config.{key} is {pair}; it must be two numbers above 0, the smaller first")
