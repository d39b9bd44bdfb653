"""XLA's compiled programs, kept from one `stce` command to the next in the user's cache directory.

Only for commands, before JAX is imported: importing the package into a notebook changes no settings. JAX names an
entry by program, options, versions, devices and a CPU's instruction sets, so that a program is loaded only where it
belongs.
"""

import contextlib
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

from stce_jax.platform import terminal

KEPT = 2**30  # bytes, of the most recently used programs
STAMP = "looked_through"  # an empty file whose age is that of the last check of the size
DAY = 24 * 60 * 60  # seconds
# JAX's warning. It then compiles what it could not read.
FAILURE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)", re.DOTALL)


def turn_on() -> None:
    """Sets JAX's environment variables so that it keeps all that it compiles; variables that are set already stay.

    Without a directory that can be written, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    directory = default_directory()
    if not directory.is_absolute():  # "~" itself, of a user without a home
        return
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write there can have programs run
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            return
        _limit_size(directory)
    except OSError:
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    _repair(directory)


def default_directory() -> Path:
    """$XDG_CACHE_HOME/stce_jax/jax; without that variable ~/.cache/stce_jax/jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "stce_jax", "jax")


def serve_all_processes() -> None:
    """Has each process of a run on CPUs keep what it compiles; to be called before JAX's first computation.

    JAX lets process 0 alone write. Elsewhere what it writes serves all, but a CPU's programs have other names in each
    process, so that the others would compile at every start.
    """
    import jax
    from jax._src import compilation_cache, distributed  # the cache has no public name
    from jax._src import compiler as private

    compiler: Any = private
    settings: Any = jax.config
    write = getattr(compiler, "_cache_write", None)
    if write is None:  # another version of JAX: none of them uses the cache
        settings.update("jax_enable_compilation_cache", False)
        return

    def write_in_all(key: str, seconds: float, module: str, backend: Any, executable: Any, *more: Any) -> None:
        host_callbacks = more[0] if more else ()  # which programs with callbacks have, up to JAX 0.11
        if backend.platform != "cpu" or distributed.global_state.process_id == 0:
            write(key, seconds, module, backend, executable, *more)
        elif not host_callbacks and seconds >= settings.jax_persistent_cache_min_compile_time_secs:
            try:
                compilation_cache.put_executable_and_time(key, module, executable, backend, int(seconds))
            except Exception as error:  # as JAX does, see `FAILURE`
                text = (
                    f"Error writing persistent compilation cache entry for '{module}': {type(error).__name__}: {error}"
                )
                warnings.warn(text, stacklevel=1)

    compiler._cache_write = write_in_all


def _limit_size(directory: Path) -> None:
    """Once a day, deletes all but the most recently used programs; a run that needs a deleted one compiles it."""
    stamp = directory / STAMP
    if stamp.exists() and time.time() - stamp.stat().st_mtime < DAY:
        return
    stamp.touch()
    found, size = [], 0
    for path in directory.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    for _, own, path in sorted(found, reverse=True):
        size += own
        if size > KEPT:
            path.unlink(missing_ok=True)


def _repair(directory: Path) -> None:
    """Deletes entries that cannot be read, which JAX would keep forever, and reports once if none can be written.

    A write that is cut short, by a full disk or a signal, leaves half an entry.
    """
    show = warnings.showwarning
    reported = False

    def showwarning(message: Warning | str, *where: Any, **more: Any) -> None:
        nonlocal reported
        failure = FAILURE.match(str(message))
        if not failure:
            show(message, *where, **more)
        elif failure[1] == "reading":
            for path in directory.glob(f"{failure[2]}-*-cache"):
                path.unlink(missing_ok=True)
        elif not reported:
            reported = True
            terminal.warn(f"compiled programs are not kept: {failure[3]}")

    warnings.showwarning = showwarning
