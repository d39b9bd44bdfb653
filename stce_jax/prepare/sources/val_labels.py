"""Which class each validation image of ILSVRC2012 shows: its archive does not say.

The labels are in the development kit (as numbers of ILSVRC's own, which meta.mat translates), in Kaggle's
LOC_val_solution.csv, and in many a text file.
"""

import contextlib
import gzip
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from stce_jax.data.class_lists import is_wordnet_id
from stce_jax.data.finding import has_image_suffix
from stce_jax.errors import DataError
from stce_jax.paths import first_line, read_regular
from stce_jax.prepare.sources.matlab import read_structs
from stce_jax.prepare.sources.references import stem

DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_MAX_BYTES = 64 * 2**20  # of a file with labels; the devkit's has less than 1 MiB

Labels = Callable[[str], str]  # from a validation image's file name to its WordNet id


def find_labels(*directories: Path) -> str:
    """The path of the devkit, unpacked or not, or of Kaggle's table, in the first directory that has one; else ""."""
    for directory in directories:
        for name in (f"{DEVKIT}.tar.gz", DEVKIT, SOLUTION):
            if (directory / name).exists():
                return str(directory / name)
    return ""


def read_labels(path: str | Path) -> Labels:
    """A function from a validation image's file name to its WordNet id.

    Args:
      path: the devkit (.tar.gz, or the directory unpacked from it), LOC_val_solution.csv, lines of a file name and a
        WordNet id or of these the other way round, or lines of a WordNet id alone, in the order of the images' numbers.

    Raises:
      DataError: none of these forms. The function raises it for an image that has no label.
    """
    path = Path(os.path.expanduser(path))
    with _one_line(path):
        if path.is_dir():
            return _by_name(_from_devkit(lambda name: read_regular(_one_of(path, name), _MAX_BYTES), path), {}, path)
        content = read_regular(path, _MAX_BYTES)
    return parse_labels(content, path)


def parse_labels(content: bytes, path: str | Path) -> Labels:
    """The function of `read_labels` from a file's bytes; `path` is what to call it."""
    with _one_line(path):
        content = _unpack(content, path)
        if content[257:262] == b"ustar":
            return _by_name(_from_packed_devkit(content, path), {}, path)
        return _by_name(*_from_lines(content.decode("utf-8-sig").splitlines(), path), path)


@contextlib.contextmanager
def _one_line(path: str | Path) -> Iterator[None]:
    """Turns what goes wrong in reading labels into one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # whatever tarfile, gzip and the file system make of damaged files
        raise DataError(
            f"cannot read validation labels from {path}: {first_line(error)}; give --val_labels=FILE"
        ) from error


def _by_name(by_number: Sequence[str], by_stem: dict[str, str], path: str | Path) -> Labels:
    """The function of `read_labels` from what `_from_lines` returns."""

    def label(name: str) -> str:
        found = by_stem.get(stem(name))
        number = _NUMBER.fullmatch(stem(name))
        if found is None and number and 1 <= int(number[1]) <= len(by_number):
            found = by_number[int(number[1]) - 1]
        if found is None:
            raise DataError(f"{path} has no label for the validation image {name}; give another --val_labels=FILE")
        return found

    return label


def _unpack(content: bytes, path: str | Path) -> bytes:
    """The bytes of a file that may be gzipped."""
    if content[:2] == b"\x1f\x8b":
        with gzip.open(io.BytesIO(content)) as file:
            content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path} holds more than {_MAX_BYTES:,} bytes: no validation labels; give --val_labels=FILE")
    return content


def _from_packed_devkit(content: bytes, path: str | Path) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        contents = {}
        while (member := archive.next()) is not None:
            base = member.name.rpartition("/")[2]
            if member.isfile() and base in ("meta.mat", _TRUTH):
                contents[base] = cast(io.BufferedReader, archive.extractfile(member)).read()  # a file has one
    for name in ("meta.mat", _TRUTH):
        if name not in contents:
            raise DataError(f"{path} holds no {name}; give the devkit of tasks 1 and 2, {DEVKIT}.tar.gz")
    return _from_devkit(contents.__getitem__, path)


def _from_devkit(read: Callable[[str], bytes], path: str | Path) -> list[str]:
    """WordNet ids in the order of the images' numbers."""
    meta, truth = read("meta.mat"), read(_TRUTH)
    try:
        synsets = read_structs(meta, "synsets", ("ILSVRC2012_ID", "WNID"))
        ids = {int(number): str(wordnet_id) for number, wordnet_id in synsets}
        if odd := [each for each in ids.values() if not is_wordnet_id(each)]:
            raise ValueError(f"{odd[0][:40]!r} in meta.mat is no WordNet id")
        labels = [ids.get(int(line)) for line in truth.split()]
    except (ValueError, OverflowError) as error:  # of numbers, too, that are none
        raise DataError(f"cannot read the devkit {path}: {error}; get it again") from error
    if None in labels:
        raise DataError(f"cannot read the devkit {path}: {_TRUTH} has a class that meta.mat has not; get it again")
    return cast(list[str], labels)


def _one_of(directory: Path, name: str) -> Path:
    found = sorted(directory.rglob(name))
    if not found:
        raise DataError(f"{directory} holds no {name}; give the devkit of tasks 1 and 2, {DEVKIT}.tar.gz")
    return found[0]


def _from_lines(lines: Sequence[str], path: str | Path) -> tuple[list[str], dict[str, str]]:
    """(ids in the order of the images' numbers, {stem of a file name: id}); one of them is empty."""
    by_number: list[str] = []
    by_stem: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":  # the header of Kaggle's table
            continue
        if len(words) == 1 and is_wordnet_id(words[0]):
            by_number.append(words[0])
            continue
        if is_wordnet_id(words[0]) and _is_image_name(words[1]):
            words = words[1::-1]
        if len(words) == 1 or is_wordnet_id(words[0]) or not is_wordnet_id(words[1]):
            raise DataError(
                f"{path}, line {number}: {line[:60]!r} is neither a file name and a WordNet id nor such an id; "
                "give another --val_labels=FILE"
            )
        if by_stem.setdefault(stem(words[0]), words[1]) != words[1]:
            raise DataError(f"{path}, line {number}: {words[0]} has two labels; give another --val_labels=FILE")
    if bool(by_number) == bool(by_stem):
        raise DataError(f"{path} must hold either file names with WordNet ids or ids alone; give another file")
    return by_number, by_stem


def _is_image_name(word: str) -> bool:
    return has_image_suffix(word) or _NUMBER.fullmatch(stem(word)) is not None
