"""Remote data on the local disk: images are read from local files, so remote ones are copied once and kept.

Copies lie below $XDG_CACHE_HOME/stce_jax/mirror (by default ~/.cache), a directory for each remote data_dir. Each time
a data set is opened, names and sizes are compared with the remote ones: what is missing or changed is copied, what is
gone is removed.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from stce_jax.errors import DataError
from stce_jax.paths import first_line

_THREADS = 8
_EVERY = 10  # seconds between two lines of progress
_CHUNK = 8 * 2**20  # bytes
_MEGABYTE = 1e6


def local_root(remote):
    """The local directory that stands for a remote data_dir, there or not; its name ends with a hash of the URL."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"\W+", "_", str(remote), flags=re.ASCII).strip("_")[-60:]
    return cache / "stce_jax" / "mirror" / f"{name}-{hashlib.sha256(str(remote).encode()).hexdigest()[:12]}"


def local_copy(remote, part):
    """Copies remote/part to local_root(remote)/part, as far as it is not there yet.

    An interrupted copy goes on with the file it was at; processes that come at the same time wait for the first.

    Args:
      remote: `epath.Path` of a remote data_dir.
      part: path below it.

    Returns:
      The local directory.

    Raises:
      DataError: there is nothing, it cannot be read, or the local disk has no room for it.
    """
    source, target = remote / part, local_root(remote) / part
    with _failures(source, target), ThreadPoolExecutor(_THREADS) as pool:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(local_root(remote).with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wanted = _remote_files(source, pool)
            if not wanted:
                raise DataError(f"there is nothing in {source}; give another --data_dir")
            there = _local_files(target)
            for name in there.keys() - wanted.keys():
                (target / name).unlink()
            missing = sorted(name for name in wanted if there.get(name) != wanted[name])
            size = sum(wanted[name] for name in missing)
            room = shutil.disk_usage(target.parent).free
            if size > room:
                raise DataError(
                    f"no room to copy {source} to {target}: it takes {size / _MEGABYTE:,.0f} MB, and "
                    f"{room / _MEGABYTE:,.0f} are free; make room, or set XDG_CACHE_HOME to a directory on another disk"
                )
            _copy_all(source, epath.Path(target), {name: wanted[name] for name in missing}, _download, pool)
    return target


def upload(remote, part, local, last):
    """Copies the local directory to remote/part, and keeps it as what `local_copy` finds.

    Args:
      remote: `epath.Path` of a remote data_dir.
      part: path below it.
      local: a directory on the disk of `local_root`; it is gone afterwards.
      last: name of the file without which the data set does not count as there; it is written after all others.

    Raises:
      DataError: it cannot be written.
    """
    target, kept = remote / part, local_root(remote) / part
    with _failures(local, target), ThreadPoolExecutor(_THREADS) as pool:
        files = _local_files(local)
        end = {last: files.pop(last)}
        _copy_all(epath.Path(local), target, files, _upload, pool)
        _copy_all(epath.Path(local), target, end, _upload, pool)
        shutil.rmtree(kept, ignore_errors=True)  # of a data set that was there before, and was deleted
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.rename(local, kept)


@contextlib.contextmanager
def _failures(source, target):
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of a remote storage anything
        raise DataError(
            f"cannot copy {source} to {target}: {first_line(error)}; once that is mended, run again to go on"
        ) from error


def _remote_files(root, pool):
    """{path relative to root: bytes} of all files below."""
    files, folders = {}, [root]
    while folders:
        entries = [entry for found in pool.map(_entries, folders) for entry in found]
        folders = [path for path, size in entries if size is None]
        files |= {str(path.relative_to(root)): size for path, size in entries if size is not None}
    return files


def _entries(folder):
    """(path, bytes or None for a folder) of what is in a remote folder."""
    try:
        paths = [path for path in folder.iterdir() if path != folder]  # itself, where something has made a marker of it
    except FileNotFoundError:
        return []
    found = [(path, path.stat()) for path in paths]
    return [(path, None if status.is_directory else status.length) for path, status in found]


def _local_files(root):
    """The same of a local directory."""
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def _copy_all(source, target, sizes, copy, pool):
    """Calls `copy(source file, target file, bytes)` for all files in threads, and says how far it is."""
    if not sizes:
        return
    total, done, said, lock = sum(sizes.values()) / _MEGABYTE, 0, time.monotonic(), threading.Lock()
    print(f"copying {source} to {target}: {len(sizes):,} files, {total:,.1f} MB", flush=True)

    def copy_one(name):
        nonlocal done, said
        copy(source / name, target / name, sizes[name])
        with lock:
            done += sizes[name]
            if time.monotonic() - said > _EVERY:
                said = time.monotonic()
                print(f"copied {done / _MEGABYTE:,.1f} of {total:,.1f} MB", flush=True)

    futures = [pool.submit(copy_one, name) for name in sizes]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _download(source, target, size):
    os.makedirs(target.parent, exist_ok=True)
    partial = f"{target}.partial"
    with source.open("rb") as read, open(partial, "wb") as write:
        shutil.copyfileobj(read, write, _CHUNK)
    if os.path.getsize(partial) != size:
        raise OSError(f"{source} has {os.path.getsize(partial):,} bytes instead of {size:,}: it is being written")
    os.replace(partial, target)


def _upload(source, target, size):
    del size
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, _CHUNK)
