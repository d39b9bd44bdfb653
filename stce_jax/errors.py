"""What can go wrong for a user, each kind with the exit code that `stce` ends with.

The message of such an error is one line: the cause, and what to do about it.
"""

import numbers
from collections.abc import Collection
from typing import Any

SHOWN = 100  # characters of a value in a message
LONGEST_TEXT = 4096  # characters of an option: as long as Linux lets a path be


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


def shown(value: object) -> str:
    """A value for a message: its repr in one line of at most `SHOWN` characters, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of more digits than Python prints, or somebody's own class
        text = f"no printable {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def check_choice(option: str, value: object, choices: Collection[object]) -> None:
    """Raises ConfigError unless an option's value is one of the choices, which are text."""
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(str(choice) or '""' for choice in choices)
        raise ConfigError(f"{option} is {shown(value)}; it must be one of {known}")


def check_whole(option: str, value: Any, minimum: int, maximum: int, *, or_zero: bool = False) -> None:
    """Raises ConfigError unless a value is a whole number, minimum <= value <= maximum, or 0 where that is taken."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and (minimum <= value <= maximum or (or_zero and value == 0))):
        zero = "0, or " * or_zero
        raise ConfigError(
            f"{option} is {shown(value)}; it must be {zero}a whole number between {minimum} and {maximum}"
        )


def check_range(
    option: str,
    value: Any,
    minimum: float,
    maximum: float,
    *,
    above: bool = False,
    below: bool = False,
    or_zero: bool = False,
) -> None:
    """Raises ConfigError unless an option's value is a number with minimum <= value <= maximum; NaN is in no range.

    Args:
      option: its name in the message.
      value: of any type.
      minimum, maximum: finite.
      above: minimum < value instead.
      below: value < maximum instead.
      or_zero: 0 is taken, too.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if real and (minimum < value if above else minimum <= value) and (value < maximum if below else value <= maximum):
        return
    if real and or_zero and value == 0:
        return
    bounds = f"between {minimum} and {maximum}"
    if above or below:
        bounds = f"{'above' if above else 'at least'} {minimum} and {'below' if below else 'at most'} {maximum}"
    raise ConfigError(f"{option} is {shown(value)}; it must be {'0, or ' * or_zero}{bounds}")


def check_pair(option: str, pair: object, minimum: float, maximum: float) -> None:
    """Raises ConfigError unless a pair is two numbers, minimum <= smaller <= larger <= maximum."""
    entries = pair if isinstance(pair, tuple | list) else ()
    real = len(entries) == 2 and all(
        isinstance(entry, int | float) and not isinstance(entry, bool) for entry in entries
    )
    if not (real and minimum <= entries[0] <= entries[1] <= maximum):
        raise ConfigError(
            f"{option} is {shown(pair)}; it must be two numbers between {minimum} and {maximum}, the smaller first"
        )


def check_text(option: str, value: object) -> None:
    """Raises ConfigError unless an option's value is text that a path or a name can be: 4,096 characters, no NUL."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or "\0" in value:
        raise ConfigError(f"{option} is {shown(value)}; it must be text of at most {LONGEST_TEXT:,} characters")
