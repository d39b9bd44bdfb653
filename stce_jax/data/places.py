"""Where prepared datasets lie in a data_dir: DATASET/NAME-HASH/VERSION, of raw pixels DATASET/NAME-HASH-rawN/VERSION.

NAME is what the list of classes, or the source's folder, is called, HASH identifies the classes, N is the short side.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from etils import epath

from stce_jax.data import class_lists
from stce_jax.errors import ConfigError, DataError
from stce_jax.paths import is_remote, user_directory

VERSION = "1.0.0"  # of what is prepared; names its directories
INFO_FILE = "dataset_info.json"  # tfds's
Directory = TypeVar("Directory", Path, epath.Path)  # local, or maybe remote


def default_data_dir() -> Path:
    """The user's data directory: $XDG_DATA_HOME/stce_jax, or ~/.local/share/stce_jax; ConfigError without a home."""
    return user_directory("XDG_DATA_HOME", ".local/share", "--data_dir") / "stce_jax"


def check_name(data_dir: Path | epath.Path) -> None:
    """Raises ConfigError for a data_dir that array_record, which writes and reads the images, cannot name."""
    try:
        str(data_dir).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"cannot use data_dir {data_dir}: prepared data need a path in UTF-8; give another"
        ) from error


def prepared(root: Directory, name: str) -> list[Directory]:
    """Directories of the prepared datasets of this name, sorted."""
    try:  # no glob: epath would take the root's name for a pattern, too
        there = [path for path in (root / name).iterdir() if not path.name.startswith("incomplete")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(path / VERSION for path in there if is_complete(path / VERSION))


def is_complete(directory: Path | epath.Path) -> bool:
    """Whether a dataset is there. A local one takes its place whole; a remote one has this file uploaded last."""
    return (directory / INFO_FILE).exists() if is_remote(directory) else directory.is_dir()


def config_name(name: str, class_ids: Iterable[str], raw_short_side: int = 0) -> str:
    """The name of a prepared dataset's directory, by what its list of classes is called."""
    return f"{name}-{class_lists.list_hash(class_ids)}{_raw_mark(raw_short_side)}"


def raw_short_side_of(directory: Path | epath.Path) -> int:
    """The short side of a prepared dataset's raw pixels, by its directory's name; 0: its images are as they were."""
    mark = re.search(r"-raw(\d+)$", directory.parent.name)
    return int(mark[1]) if mark else 0


def _raw_mark(raw_short_side: int) -> str:
    return f"-raw{raw_short_side}" if raw_short_side else ""


def called(directory: Path | epath.Path) -> str:
    """What a prepared dataset's list of classes, or its source's folder, was called."""
    return directory.parent.name.removesuffix(_raw_mark(raw_short_side_of(directory))).rpartition("-")[0]


def find_prepared(root: Directory, name: str, classes: str, raw_short_side: int = 0) -> Directory | None:
    """The directory of a prepared ImageNet with the classes of a list, whatever that list was called, or None.

    If the list's file was moved or deleted, the dataset is found by the name that it was prepared under.

    Raises:
      ConfigError: there is no such list, and none or several were prepared under that name.
    """
    name_of_list = class_lists.list_name(classes)
    there = [path for path in prepared(root, name) if raw_short_side_of(path) == raw_short_side]
    try:
        ending = config_name("", class_lists.load_class_ids(classes), raw_short_side)
    except ConfigError:
        found = [path for path in there if called(path) == name_of_list]
        if len(found) != 1 or Path(os.path.expanduser(classes)).exists():
            raise
        return found[0]
    found = [path for path in there if path.parent.name.endswith(ending)]
    own = [path for path in found if path.parent.name == name_of_list + ending]
    return next(iter(own + found), None)


def not_prepared(
    root: Path | epath.Path,
    name: str,
    classes: str,
    raw_short_side: int,
    others: Sequence[Path | epath.Path],
    of_run: bool,
) -> DataError:
    """The error where a dataset is not prepared.

    Args:
      others: directories of its other kinds.
      of_run: see `catalog.open_dataset`.
    """
    what = f"{name} with the classes {classes!r}" if classes else name
    options = f" --classes={classes}" if classes and classes != "all" else ""
    raw = f" --raw_short_side={raw_short_side}" if raw_short_side else ""
    how = f"not prepared in {root}" + (f" as raw pixels of short side {raw_short_side}" if raw else "")
    if others and not raw:
        how = f"prepared in {root} only as raw pixels"
    sides = sorted({raw_short_side_of(path) for path in others})
    use = f"--config.raw_short_side={' or '.join(map(str, sides))}" if sides and not of_run else ""
    if of_run and 0 in sides:
        use = f"--dataset={name}"
    return DataError(
        f"{what} is {how}; "
        + (f"use what is there by {use}, or " if use else "")
        + f"run stce prepare {name} --source=PATH{options}{raw} --data_dir={root}"
    )
