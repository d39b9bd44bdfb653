"""What can go wrong for a user, each kind with the exit code that `stce` ends with.

The message of such an error is one line: the cause, and what to do about it.
"""

from collections.abc import Collection, Sequence


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
    """The loss is no longer finite, or jumps, however often the run was rolled back."""

    exit_code = 5


class PreemptedError(StceError):
    """Stopped by SIGTERM or SIGINT with everything saved; the same command resumes."""

    exit_code = 75


def check_choice(option: str, value: object, choices: Collection[object]) -> None:
    """Raises ConfigError unless an option's value is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{option} is {value!r}; it must be one of {', '.join(map(str, choices))}")


def check_range(option: str, value: float, minimum: float, maximum: float | None = None) -> None:
    """Raises ConfigError unless minimum <= value <= maximum (None: no bound); NaN is in no range."""
    if not (minimum <= value and (maximum is None or value <= maximum)):
        bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ConfigError(f"{option} is {value}; it must be {bounds}")


def check_pair(option: str, pair: Sequence[object], maximum: float | None = None) -> None:
    """Raises ConfigError unless a pair is two numbers, 0 < smaller <= larger <= maximum (None: no bound)."""
    numbers = [number for number in pair if isinstance(number, int | float)]
    ordered = len(pair) == len(numbers) == 2 and 0 < numbers[0] <= numbers[1]
    if not (ordered and (maximum is None or numbers[1] <= maximum)):
        raise ConfigError(f"{option} is {pair}; it must be two numbers above 0, the smaller first")
