"""`stce prepare`: images from any of four forms into a data set of their bytes or pixels, verified and counted."""

import os
from pathlib import Path

from stce_jax.data import catalog, label_sets
from stce_jax.errors import ConfigError, check_whole
from stce_jax.paths import is_remote
from stce_jax.prepare.making import make
from stce_jax.prepare.report import Report
from stce_jax.processes.stopping import Exit

ON_BAD = ("error", "skip")
_MIN_RAW = 32  # pixels of a raw image's short side
_MOST_WORKERS = 1024  # threads


def prepare(
    dataset: str,
    source: str | Path,
    *,
    classes: str = "",
    data_dir: str | Path = "",
    on_bad: str = "error",
    val_labels: str = "",
    workers: int = 0,
    raw_short_side: int = 0,
    exit_process: Exit | None = None,
) -> Report:
    """Prepares a data set, unless it is there already.

    Args:
      dataset: "imagenet100", "imagenet2012", or "folder" for class folders of any names.
      source: local path of the images, see `open_source`.
      classes: for "imagenet100" the list of classes, see `class_lists.load_class_ids`, by default "kaggle".
      data_dir: the directory that holds prepared data sets, local or remote; by default the user's data directory.
      on_bad: "error" refuses a source with images that cannot be decoded, after all of them were found; "skip" leaves
        them out. Images that cannot be read are refused either way: the next time they may be there.
      val_labels: file or directory with the labels of ILSVRC2012's validation images; by default they are looked for
        beside the images.
      workers: threads that read and decode; 0: one a core.
      raw_short_side: 0 stores the files' bytes; 32 or more stores decoded pixels, larger images first resized to this
        short side (bicubic, antialiased), see `crops.raw_file`. Training reads them with config.raw_short_side. Both
        kinds, and several short sides, can lie in one data_dir.
      exit_process: ends the process where a signal is not heard, see `staging.ends_cleanly`; None if this function may
        not end it.

    Returns:
      What was prepared; it is printed, too.

    Raises:
      ConfigError: a wrong argument.
      DataError: the source is unknown, damaged or incomplete, images are bad, the result cannot be written, or what
        is there already is damaged or, for "folder", of another source.
      PreemptedError: SIGTERM or SIGINT came; nothing is left half-written.
    """
    if not str(source):
        raise ConfigError("--source is empty; give the directory or archive with the images")
    if is_remote(source):
        raise ConfigError(f"--source={source} must be local; copy it to a disk first")
    if label_sets.is_there(Path(source)):
        raise ConfigError(
            f"{source} has a {label_sets.TABLE}: images with several labels are not prepared but read as they are, by "
            "stce train --config.task=multi_label; or take the table away"
        )
    if dataset not in catalog.PREPARED:
        raise ConfigError(f"there is no dataset {dataset!r} to prepare; there are {', '.join(catalog.PREPARED)}")
    if classes and dataset != "imagenet100":
        raise ConfigError(f"--classes={classes} is for imagenet100; {dataset} takes all classes that there are")
    if on_bad not in ON_BAD:
        raise ConfigError(f"--on_bad={on_bad} is none of {', '.join(ON_BAD)}")
    check_whole("--workers", workers, 0, _MOST_WORKERS)
    check_whole("--raw_short_side", raw_short_side, _MIN_RAW, catalog.LARGEST_RAW, or_zero=True)
    return make(
        dataset,
        str(source),
        classes="all" if dataset == "imagenet2012" else classes or "kaggle",
        data_dir=data_dir or catalog.default_data_dir(),
        on_bad=on_bad,
        val_labels=val_labels,
        workers=workers or len(os.sched_getaffinity(0)),
        raw_short_side=raw_short_side,
        exit_process=exit_process,
    )
