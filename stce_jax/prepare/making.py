"""Making a data set, once and whole.

The source is indexed first, then `conversion` writes its images. All goes into a directory called incomplete.*, under a
lock, and takes its final name in one step at the very end; a process that is killed leaves that directory behind, and
the next one removes it. For a remote data_dir all this happens in the local cache, and the finished data set is
uploaded.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

from etils import epath

from stce_jax.data import class_lists, mirror, places
from stce_jax.data.locks import locked
from stce_jax.errors import DataError
from stce_jax.paths import absolute, is_remote, open_path, remedy
from stce_jax.platform.terminal import say
from stce_jax.prepare.conversion import convert
from stce_jax.prepare.messages import size_text
from stce_jax.prepare.report import Report
from stce_jax.prepare.sources.recognition import open_source
from stce_jax.prepare.sources.references import Source
from stce_jax.prepare.staging import ends_cleanly, staging
from stce_jax.processes.stopping import Exit


def make(
    dataset: str,
    source: str,
    *,
    classes: str,
    data_dir: str | Path,
    on_bad: str,
    val_labels: str,
    workers: int,
    raw_short_side: int,
    exit_process: Exit | None = None,
) -> Report:
    """Makes the data set of a source unless it is there already, and prints its report; see `verbs.prepare`.

    Args:
      dataset: one of `catalog.PREPARED`.
      source: local path of the images.
      classes: list of classes of an ImageNet, see `class_lists.load_class_ids`; unused for "folder".
      data_dir: local or remote.
      on_bad: "error" or "skip".
      val_labels: path, or "" to look for the labels.
      workers: threads, 1 or more.
      raw_short_side: 0, or the short side of stored pixels.
      exit_process: see `ends_cleanly`.

    Raises:
      ConfigError, DataError, PreemptedError: see `verbs.prepare`.
    """
    with ends_cleanly(exit_process):
        return _make(dataset, source, classes, data_dir, on_bad, val_labels, workers, raw_short_side)


def _make(
    dataset: str,
    source: str,
    classes: str,
    data_dir: str | Path,
    on_bad: str,
    val_labels: str,
    workers: int,
    raw_short_side: int,
) -> Report:
    remote = open_path(data_dir) if is_remote(data_dir) else None
    root = mirror.local_root(remote).with_suffix(".upload") if remote else absolute(data_dir)
    places.check_name(root)
    say(f"looking at {source}")
    opened: Source | None = None
    if dataset == "folder":
        opened = open_source(source, None, val_labels)
        path = absolute(source)
        class_ids, name = opened.class_ids, class_lists.safe_name(path.name if path.is_dir() else path.stem)
        _check_class_ids(class_ids)
    else:
        class_ids, name = class_lists.load_class_ids(classes), class_lists.list_name(classes)
    config = places.config_name(name, class_ids, raw_short_side)
    part = Path(dataset, config, places.VERSION)
    final = root / part

    def find() -> Report | None:
        """The report of what is there already."""
        return _find(remote or root, part, opened, dataset, classes, raw_short_side)

    try:
        with contextlib.ExitStack() as stack:
            if opened:
                stack.callback(opened.close)
            if report := find():  # before the lock: the directory may be read-only
                return report
            notice = "another process is preparing this data set; waiting for it"
            stack.enter_context(locked(root / dataset / f"{config}.lock", notice))
            if report := find():
                return report
            if final.is_dir():  # prepared earlier for a remote data_dir, but not uploaded
                report = _report_of(final, final, opened)
            else:
                if not opened:
                    opened = open_source(source, class_ids, val_labels)
                    stack.callback(opened.close)
                with staging(root / dataset, config) as directory:
                    report = convert(
                        opened,
                        directory,
                        dataset=dataset,
                        config=config,
                        on_bad=on_bad,
                        workers=workers,
                        raw_short_side=raw_short_side,
                    )
                    final.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(directory / part, final)
            taken = sum(file.stat().st_size for file in final.iterdir())
            if remote:
                mirror.upload(remote, part, final, last=places.INFO_FILE)
    except BrokenPipeError:  # the reader of the output has gone
        raise
    except OSError as error:
        where = error.filename or root
        advice = remedy(error, "give another --data_dir")
        raise DataError(f"cannot write {where}: {error.strerror or error}; {advice}") from error
    report = dataclasses.replace(report, directory=str((remote or root) / part))
    say(*report.lines())
    say(f"{size_text(taken)} on disk")
    return report


def _find(
    root: Path | epath.Path, part: Path, opened: Source | None, dataset: str, classes: str, raw_short_side: int
) -> Report | None:
    """The report of what is in a data_dir already: under its own name, or of an ImageNet with the same classes."""
    there = root / part
    if dataset != "folder":
        there = places.find_prepared(root, dataset, classes, raw_short_side) or there
    if not places.is_complete(there):
        return None
    local = mirror.local_copy(root, there.relative_to(root)) if is_remote(root) else Path(there)
    return _report_of(local, there, opened)


def _report_of(directory: Path, called: Path | epath.Path, opened: Source | None) -> Report:
    """Prints and returns the report of what was prepared earlier; DataError if it was made of another source.

    Args:
      directory: where it can be read.
      called: where it is for the user.
      opened: the source, if it is open.
    """
    report = dataclasses.replace(Report.of_prepared(directory), directory=str(called))
    if opened and report.source != opened.kind:
        raise DataError(
            f"{called} was made of {report.source}, not of {opened.kind}; delete it to make it again, or rename the "
            "source's folder to keep both"
        )
    say(f"already prepared: {called}", f"made of {report.source}, {report.bad:,} images left out")
    say(f"fingerprint {report.fingerprint}; delete the directory to make it again")
    return report


def _check_class_ids(class_ids: tuple[str, ...]) -> None:
    """Raises DataError for class names that tfds, which writes one a line, would not give back."""
    for class_id in class_ids:
        if class_id != class_id.strip() or not class_id.isprintable():
            raise DataError(f"the class folder {class_id!r} has a name with odd white space or bytes; rename it")
