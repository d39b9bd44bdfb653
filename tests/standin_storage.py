"""A stand-in for object storage: gs://BUCKET/PATH is $STCE_STANDIN_STORAGE/BUCKET/PATH, with what such storage refuses.

Objects appear whole, once their writer closes them. Nothing can be appended, changed in part or locked. A directory is
there while an object is below it; making one does nothing. Renaming copies, and is recorded in `renamed`. That is how
gcsfs, the package behind gs:// in `etils.epath`, behaves. Orbax takes the paths for Google's, and writes arrays by
tensorstore's driver for files where it would take the one for gs://.

    python tests/standin_storage.py train --config=digits --workdir=gs://bucket/run

is the `stce` command with the stand-in in place of gs://. Jobs there show signs of life every 0.2 s instead of 15; and
$STCE_STANDIN_KILL names the end of a path whose writing kills the process.
"""

import contextlib
import fnmatch
import os
import shutil
import signal
import sys
import tempfile
import types
from pathlib import Path

from etils.epath import backend, gpath, stat_utils

renamed = []  # (from, to)


class Storage(backend.Backend):
    """The backend of `etils.epath` for gs:// paths below a local directory."""

    def __init__(self, root):
        self._root = Path(root)

    def _file(self, path):
        path = os.fspath(path)
        assert path.startswith("gs://"), f"{path} is no path of this storage"
        return self._root / path.removeprefix("gs://").rstrip("/")

    def _objects(self, path):
        return [found for found in self._file(path).rglob("*") if found.is_file()]

    def _copy_all(self, path, target):
        for found in [self._file(path), *self._objects(path)]:
            if found.is_file():
                copy = self._file(target) / found.relative_to(self._file(path))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, copy)

    @contextlib.contextmanager
    def open(self, path, mode):
        encoding = None if "b" in mode else "utf-8"
        if mode.rstrip("b") == "r":
            with open(self._file(path), mode, encoding=encoding) as file:
                yield file
            return
        if mode.rstrip("b") != "w":
            raise NotImplementedError(f"{path}: objects cannot be opened with mode {mode!r}")
        if os.environ.get("STCE_STANDIN_KILL") and os.fspath(path).endswith(os.environ["STCE_STANDIN_KILL"]):
            os.kill(os.getpid(), signal.SIGKILL)
        uploads = self._root / ".uploads"
        uploads.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=uploads)
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
        self._file(path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, self._file(path))

    def exists(self, path):
        return self._file(path).is_file() or self.isdir(path)

    def isdir(self, path):
        return any(found.is_file() for found in self._file(path).rglob("*"))

    def listdir(self, path):
        if not self.exists(path):
            raise FileNotFoundError(path)
        return sorted(entry.name for entry in self._file(path).iterdir() if self.exists(f"{path}/{entry.name}"))

    def glob(self, path):
        found = [""]
        for part in os.fspath(path).removeprefix("gs://").split("/"):
            names = [(root, name) for root in found for name in (self._names(root) if "*" in part else [part])]
            found = [f"{root}/{name}".lstrip("/") for root, name in names if fnmatch.fnmatchcase(name, part)]
        return sorted(f"gs://{name}" for name in found if self.exists(f"gs://{name}"))

    def _names(self, root):
        return self.listdir(f"gs://{root}") if self.isdir(f"gs://{root}") else []

    def walk(self, top, *, top_down=True, on_error=None):
        raise NotImplementedError("epath's walk gives paths without gs://")

    def makedirs(self, path, *, exist_ok=False, mode=None):
        self.mkdir(path, exist_ok=exist_ok, mode=mode)

    def mkdir(self, path, *, exist_ok=False, mode=None):
        del mode
        if not exist_ok and self.exists(path):
            raise FileExistsError(path)

    def rmtree(self, path):
        if not self.exists(path):
            raise FileNotFoundError(path)
        for found in self._objects(path):
            found.unlink(missing_ok=True)
        shutil.rmtree(self._file(path), ignore_errors=True)

    def remove(self, path):
        self._file(path).unlink()

    def rename(self, path, dst):
        if self.exists(dst):
            raise FileExistsError(dst)
        self.replace(path, dst)

    def replace(self, path, dst):
        renamed.append((os.fspath(path), os.fspath(dst)))
        self._copy_all(path, dst)
        self._file(path).unlink() if self._file(path).is_file() else self.rmtree(path)

    def copy(self, path, dst, overwrite):
        if not overwrite and self.exists(dst):
            raise FileExistsError(dst)
        with self.open(path, "rb") as source, self.open(dst, "wb") as target:
            shutil.copyfileobj(source, target)

    def stat(self, path):
        if not self.exists(path):
            raise FileNotFoundError(path)
        status = os.stat(self._file(path))
        directory = self._file(path).is_dir()
        return stat_utils.StatResult(
            directory, 0 if directory else status.st_size, int(status.st_mtime), None, None, None
        )


def install(monkeypatch, root):
    """Puts the stand-in in place of gs://, by pytest's monkeypatch, whose `undo` removes it."""
    from orbax.checkpoint._src.path import gcs_utils

    storage = Storage(root)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", storage)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)

    def store(path):
        bucket, name = gcs_utils.parse_gcs_path(path, add_trailing_slash=False)
        return {"driver": "file", "path": f"{root}/{bucket}/{name}"}

    monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", store)
    bucket = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: bucket)
    return storage


if __name__ == "__main__":
    import pytest

    from stce_jax.cli import main
    from stce_jax.workdir import claim as workdir

    install(pytest.MonkeyPatch(), os.environ["STCE_STANDIN_STORAGE"])
    workdir.BEAT, workdir.PATIENCE, workdir.SETTLE = 0.2, 3.0, 0.2
    main(sys.argv[1:])
