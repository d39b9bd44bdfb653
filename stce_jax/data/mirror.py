"""Remote data on the local disk: images are read from local files, so remote ones are copied once and kept.

Copies lie below $XDG_CACHE_HOME/stce_jax/mirror (by default ~/.cache), one directory for each remote data_dir. Whenever
a data set is opened, names and sizes are compared with the remote ones: missing or changed files are copied, and files
that are gone there are removed.
"""

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from stce_jax.data.locks import locked
from stce_jax.errors import DataError
from stce_jax.paths import first_line, user_directory, whole_file
from stce_jax.platform import terminal

_THREADS = 8
_EVERY = 10  # seconds between two lines of progress
_CHUNK = 8 * 2**20  # bytes
_MEGABYTE = 1e6


def local_root(remote: epath.Path) -> Path:
    """The local directory of a remote data_dir, whether it exists or not; its name ends with a hash of the URL."""
    cache = user_directory("XDG_CACHE_HOME", ".cache", "a local --data_dir")
    name = re.sub(r"\W+", "_", str(remote), flags=re.ASCII).strip("_")[-60:]
    return cache / "stce_jax" / "mirror" / f"{name}-{hashlib.sha256(str(remote).encode()).hexdigest()[:12]}"


def local_copy(remote: epath.Path, part: str | os.PathLike[str]) -> Path:
    """Copies what is missing from remote/part to local_root(remote)/part.

    An interrupted copy resumes with the file it was at; processes that come at the same time wait for the first.

    Args:
      remote: a remote data_dir.
      part: path below it.

    Returns:
      The local directory.

    Raises:
      DataError: there is nothing, it cannot be read, or the local disk has no room for it.
    """
    source, target = remote / part, local_root(remote) / part
    with _failures(source, target), _threads() as pool:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(local_root(remote).with_suffix(".lock")):
            sizes = _remote_files(source, pool)
            if not sizes:
                raise DataError(f"there is nothing in {source}; give another --data_dir")
            there = _local_files(target)
            for name in there.keys() - sizes.keys():
                (target / name).unlink()
            missing = sorted(name for name in sizes if there.get(name) != sizes[name])
            size = sum(sizes[name] for name in missing)
            room = shutil.disk_usage(target.parent).free
            if size > room:
                raise DataError(
                    f"no room to copy {source} to {target}: it takes {size / _MEGABYTE:,.0f} MB, and "
                    f"{room / _MEGABYTE:,.0f} are free; make room, or set XDG_CACHE_HOME to a directory on another disk"
                )
            _copy_all(source, epath.Path(target), {name: sizes[name] for name in missing}, _download, pool)
    return target


def upload(remote: epath.Path, part: str | os.PathLike[str], local: Path, last: str) -> None:
    """Copies the local directory to remote/part, and keeps it as the copy that `local_copy` finds.

    Args:
      remote: a remote data_dir.
      part: path below it.
      local: a directory on the disk of `local_root`; it is gone afterwards.
      last: name of the file without which the data set does not count as there; it is written after all others.

    Raises:
      DataError: it cannot be written.
    """
    target, kept = remote / part, local_root(remote) / part
    with _failures(local, target), _threads() as pool:
        files = _local_files(local)
        end = {last: files.pop(last)}
        _copy_all(epath.Path(local), target, files, _upload, pool)
        _copy_all(epath.Path(local), target, end, _upload, pool)
        shutil.rmtree(kept, ignore_errors=True)  # of a data set that was there before, and was deleted
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.rename(local, kept)


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that are waited for if all goes well; after an error or a signal, a copy that hangs is not."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def _failures(source: epath.Path | Path, target: epath.Path | Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of a remote storage anything
        raise DataError(
            f"cannot copy {source} to {target}: {first_line(error)}; repair that and run again to resume"
        ) from error


def _remote_files(root: epath.Path, pool: ThreadPoolExecutor) -> dict[str, int]:
    """{path relative to root: bytes} of all files below."""
    files: dict[str, int] = {}
    folders = [root]
    while folders:
        entries = [entry for found in pool.map(_entries, folders) for entry in found]
        folders = [path for path, size in entries if size is None]
        files |= {str(path.relative_to(root)): size for path, size in entries if size is not None}
    return files


def _entries(folder: epath.Path) -> list[tuple[epath.Path, int | None]]:
    """(path, bytes or None for a folder) of what is in a remote folder."""
    try:
        paths = [
            path for path in folder.iterdir() if path != folder
        ]  # some storages list a marker of the folder itself
    except FileNotFoundError:
        return []
    found = [(path, path.stat()) for path in paths]
    return [(path, None if status.is_directory else status.length) for path, status in found]


def _local_files(root: Path) -> dict[str, int]:
    """The same of a local directory."""
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def _copy_all(
    source: epath.Path,
    target: epath.Path,
    sizes: dict[str, int],
    copy: Callable[[epath.Path, epath.Path, int], None],
    pool: ThreadPoolExecutor,
) -> None:
    """Calls `copy(source file, target file, bytes)` for all files in threads, and prints progress."""
    if not sizes:
        return
    total, done, last_line, lock = sum(sizes.values()) / _MEGABYTE, 0, time.monotonic(), threading.Lock()
    terminal.say(f"copying {source} to {target}: {len(sizes):,} files, {total:,.1f} MB")

    def copy_one(name: str) -> None:
        nonlocal done, last_line
        copy(source / name, target / name, sizes[name])
        with lock:
            done += sizes[name]
            if time.monotonic() - last_line > _EVERY:
                last_line = time.monotonic()
                terminal.say(f"copied {done / _MEGABYTE:,.1f} of {total:,.1f} MB")

    futures = [pool.submit(copy_one, name) for name in sizes]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _download(source: epath.Path, target: epath.Path, size: int) -> None:
    os.makedirs(target.parent, exist_ok=True)
    with source.open("rb") as read, whole_file(target, flush=False) as write:
        shutil.copyfileobj(read, write, _CHUNK)
        if write.tell() != size:
            raise OSError(f"{source} has {write.tell():,} bytes instead of {size:,}: it is being written")


def _upload(source: epath.Path, target: epath.Path, size: int) -> None:
    del size
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, _CHUNK)
