"""Whether the files of a directory are what was written: their SHA-256 in a file that `sha256sum -c` reads, too."""

import errno
import hashlib
import os
import re
from typing import Any

from etils import epath

from stce_jax.paths import is_remote, open_regular, read_bytes, write_text

FILE_NAME = "SHA256SUMS"
_MAX_BYTES = 256 * 2**20  # of the file of digests
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_digests(directory: epath.Path) -> None:
    """Writes the digest of every file at any depth of a directory beside them."""
    files = sorted((name, path) for name, path in _files(directory).items() if name != FILE_NAME)
    lines = [f"{_digest(path)}  {name}\n" for name, path in files]
    write_text(directory / FILE_NAME, "".join(lines))


def find_damage(directory: epath.Path) -> str | None:
    """What is wrong with the files of a directory, in a few words that name the first of them; None if nothing is.

    Finds any flipped bit, also in the file of digests; a file that is cut short, empty, missing, or surplus; what is no
    file, such as a pipe; a part of the disk that cannot be read. Other errors, which may be temporary, are raised.
    """
    files = _files(directory)
    if FILE_NAME not in files:
        return f"{FILE_NAME} is missing"
    odd = sorted(name for name, path in files.items() if not (is_remote(path) or os.path.isfile(path)))
    if odd:
        return f"{odd[0]} is no file"
    text = read_bytes(files.pop(FILE_NAME), _MAX_BYTES).decode(errors="replace")
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    digests = {line[2]: line[1] for line in lines if line}
    if not lines or not all(lines) or not text.endswith("\n"):
        return f"{FILE_NAME} is damaged"
    for name, digest in digests.items():
        if name not in files:
            return f"{name} is missing"
        try:
            if _digest(files[name]) != digest:
                return f"{name} is damaged"
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return f"{name} cannot be read: {error.strerror}"
    surplus = sorted(files.keys() - digests.keys())
    return f"{surplus[0]} is not in {FILE_NAME}" if surplus else None


def _files(directory: epath.Path) -> dict[str, epath.Path]:
    """{relative name: path} of all files at any depth; links to directories, which may lead in circles, are files."""
    files: dict[str, epath.Path] = {}
    pending = [directory]
    while pending:
        for path in pending.pop().iterdir():
            if path.is_dir() and (is_remote(path) or not os.path.islink(path)):
                pending.append(path)
            else:
                files["/".join(path.parts[len(directory.parts) :])] = path
    return files


def _digest(path: epath.Path) -> str:
    opened: Any = path.open("rb") if is_remote(path) else open_regular(path)
    with opened as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
