"""What can go wrong for a user, each kind with the exit code that `stce` ends with.

The message of such an error is one line: the cause, and what to do about it.
"""


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
