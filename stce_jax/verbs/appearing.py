"""Directories that appear whole or not at all, whatever ends the process that writes them."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from stce_jax.errors import ConfigError, StceError
from stce_jax.paths import absolute, is_remote, named_failures, remove_tree

PREFIX = ".stce-export-"  # of directories that are not finished, whatever verb writes them


@contextlib.contextmanager
def appearing(output: epath.PathLike, verb: str = "export", option: str = "--output") -> Iterator[Path]:
    """A new directory beside `output`, which takes its place if all goes well and is removed if not.

    Args:
      output: local; one that is there must be empty.
      verb, option: what the user asked for, and by which option the directory was named, for messages.

    Raises:
      ConfigError: it is remote, not empty, or cannot be written.
    """
    if is_remote(output):
        raise ConfigError(f"cannot {verb} to {output}; give a local {option} and copy it")
    path = absolute(output)
    with named_failures(f"write {path}", f"give another {option}"):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} is there already; give another {option}, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_killed(path.parent)
        partial = path.with_name(PREFIX + os.urandom(8).hex())  # no other process's
        partial.mkdir()
        lock = _lock(partial)
        try:
            yield partial
            os.rename(partial, path)
        except StceError as error:  # users know the directory by the name that they gave it
            error.args = tuple(str(part).replace(str(partial), str(path)) for part in error.args)
            raise
        finally:
            remove_tree(partial)
            if lock is not None:
                os.close(lock)


def _remove_killed(directory: Path) -> None:
    """Removes what processes that were killed have left in a directory: nobody holds its lock."""
    for left in directory.iterdir():
        if left.name.startswith(PREFIX) and (lock := _lock(left)) is not None:
            remove_tree(left)
            os.close(lock)


def _lock(directory: Path) -> int | None:
    """The descriptor of a directory that is locked by it, which the kernel closes with the process; None: another's."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None
