"""`stce prepare`: images from any of four forms into a data set of their bytes or pixels, verified and counted.

The source is indexed first, then its images are read, decoded and hashed in threads, in an order that depends on their
names alone, and written by one. All goes into a directory called incomplete.*, under a lock, which takes its final
name in one step at the very end; a run that is killed leaves that directory behind, and the next one removes it.
For a remote data_dir all this happens in the local cache, and what is finished is uploaded.
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import threading
from pathlib import Path

from stce_jax.data import catalog, class_lists, mirror, places
from stce_jax.data.catalog import SPLITS
from stce_jax.errors import ConfigError, DataError, PreemptedError
from stce_jax.paths import absolute, is_remote, open_path
from stce_jax.prepare import inspection
from stce_jax.prepare.report import ImageProgress, Report, say
from stce_jax.prepare.sources.recognition import open_source
from stce_jax.prepare.sources.references import in_order

DATASETS = ("imagenet100", "imagenet2012", "folder")
ON_BAD = ("error", "skip")
_NAMED = 3  # bad files in the one line of an error
_LEAST_RAW = 32  # pixels of a raw image's short side


def prepare(dataset, source, *, classes="", data_dir="", on_bad="error", val_labels="", workers=0, raw_short_side=0):
    """Prepares a data set, unless it is there already.

    Args:
      dataset: "imagenet100", "imagenet2012", or "folder" for class folders with whatever names.
      source: local path of the images, see `open_source`.
      classes: for "imagenet100" the list of classes, see `class_lists.load_class_ids`, by default "kaggle".
      data_dir: the directory that holds prepared data sets, local or remote; by default the user's data directory.
      on_bad: "error" refuses a source with images that cannot be decoded, once all of them are known; "skip" leaves
        them out. Images that cannot be read are refused either way: the next time they may be there.
      val_labels: file or directory with the labels of ILSVRC2012's validation images; by default looked for beside
        them.
      workers: threads that read and decode; 0: one a core.
      raw_short_side: 0 stores the files' bytes; 32 or more stores decoded pixels, of larger images made so many pixels
        high or wide, whichever is less (bicubic, antialiased); see `decode.raw_file`. Training is told by
        config.raw_short_side. Both kinds, and several short sides, can lie in one data_dir.

    Returns:
      `Report`, which is printed, too.

    Raises:
      ConfigError: a wrong argument.
      DataError: the source is unknown, damaged or incomplete, images are bad, the result cannot be written, or what
        is there already is damaged or, for "folder", of another source.
      PreemptedError: SIGTERM or SIGINT came; nothing is left half-written.
    """
    _check_arguments(dataset, source, classes, on_bad, workers, raw_short_side)
    data_dir = data_dir or catalog.default_data_dir()
    remote = open_path(data_dir) if is_remote(data_dir) else None
    root = mirror.local_root(remote).with_suffix(".upload") if remote else absolute(data_dir)
    say(f"looking at {source}")
    if dataset == "folder":
        opened = open_source(source, None, val_labels)
        path = absolute(source)
        class_ids, name = opened.class_ids, class_lists.safe_name(path.name if path.is_dir() else path.stem)
        _check_class_ids(class_ids)
    else:
        classes = "all" if dataset == "imagenet2012" else classes or "kaggle"
        opened, class_ids = None, class_lists.load_class_ids(classes)
        name = class_lists.list_name(classes)
    config = places.config_name(name, class_ids, raw_short_side)
    part = Path(dataset, config, places.VERSION)
    final = root / part

    def find():
        """The report of what is there already, or None."""
        place = remote or root
        there = place / part
        if dataset != "folder":
            there = places.find_prepared(place, dataset, classes, raw_short_side) or there
        if not places.is_complete(there):
            return None
        return _report_of(mirror.local_copy(remote, there.relative_to(remote)) if remote else there, there, opened)

    try:
        with _ends_cleanly(), contextlib.ExitStack() as stack:
            if opened:
                stack.callback(opened.close)
            if report := find():  # in a directory, maybe, that one may only read
                return report
            stack.enter_context(_locked(root / dataset, config))
            if report := find():
                return report
            if final.is_dir():  # prepared earlier for a remote data_dir, but not uploaded
                report = _report_of(final, final, opened)
            else:
                if not opened:
                    opened = open_source(source, class_ids, val_labels)
                    stack.callback(opened.close)
                with _staging(root / dataset, config) as staging:
                    workers = workers or len(os.sched_getaffinity(0))
                    report = _write(dataset, config, opened, staging, on_bad, workers, raw_short_side)
                    final.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(staging / part, final)
            taken = sum(file.stat().st_size for file in final.iterdir())
            if remote:
                mirror.upload(remote, part, final, last=places.INFO_FILE)
    except BrokenPipeError:  # whoever read what is printed has gone
        raise
    except OSError as error:
        where = error.filename or root
        raise DataError(f"cannot write {where}: {error.strerror or error}; give another --data_dir") from error
    report = dataclasses.replace(report, directory=str((remote or root) / part))
    say(report.table())
    say(f"{_gigabytes(taken)} on disk")
    return report


def _report_of(directory, called, opened):
    """Prints and returns the report of what was prepared earlier; refuses it if it is of another source.

    Args:
      directory: where it can be read.
      called: where it is for the user.
      opened: the source, or None.
    """
    report = dataclasses.replace(Report.of_prepared(directory), directory=str(called))
    if opened and report.source != opened.kind:
        raise DataError(
            f"{called} was made of {report.source}, not of {opened.kind}; delete it to make it anew, or rename the "
            "source's folder to keep both"
        )
    say(f"already prepared: {called}\nmade of {report.source}, {report.bad:,} images left out")
    say(f"fingerprint {report.fingerprint}; delete the directory to make it anew")
    return report


def _check_arguments(dataset, source, classes, on_bad, workers, raw_short_side):
    if not str(source):
        raise ConfigError("--source is empty; give the directory or archive with the images")
    if is_remote(source):
        raise ConfigError(f"--source={source} must be local; copy it to a disk first")
    if dataset not in DATASETS:
        raise ConfigError(f"there is no dataset {dataset!r} to prepare; there are {', '.join(DATASETS)}")
    if classes and dataset != "imagenet100":
        raise ConfigError(f"--classes={classes} is for imagenet100; {dataset} takes all classes that there are")
    if on_bad not in ON_BAD:
        raise ConfigError(f"--on-bad={on_bad} is none of {', '.join(ON_BAD)}")
    if workers < 0:
        raise ConfigError(f"--workers={workers} is below 0; 0 takes one thread a core")
    if raw_short_side and raw_short_side < _LEAST_RAW:
        raise ConfigError(f"--raw_short_side={raw_short_side} is below {_LEAST_RAW}; 0 stores the files themselves")


def _check_class_ids(class_ids):
    """Refuses class names that tfds, which writes one a line, would not give back."""
    for class_id in class_ids:
        if class_id != class_id.strip() or not class_id.isprintable():
            raise DataError(f"the class folder {class_id!r} has a name with odd white space or bytes; rename it")


def _gigabytes(count):
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _write(dataset, config, source, staging, on_bad, workers, raw_short_side):
    """Writes the images below the directory `staging`; returns the report."""
    from stce_jax.prepare import writer as imagenet100  # here, for it imports tfds

    say(f"source: {source.kind}" + (f"; {source.note}" if source.note else ""))
    splits = in_order(source.references)
    ordered = [reference for split in SPLITS for reference in splits[split]]
    if raw_short_side:
        most, free = len(ordered) * raw_short_side**2 * 4, shutil.disk_usage(staging).free  # 4:3, three bytes a pixel
        say(f"raw pixels take up to {_gigabytes(most)} if the images are 4:3; {_gigabytes(free)} are free")
    if source.stage:
        with ImageProgress("copying", len(ordered)) as progress:
            source.stage(staging, progress.update)
    tally = inspection.Tally(source.class_ids, len(ordered))
    names = class_lists.class_names(source.class_ids)

    def metadata():
        tally.add_repeated()
        return Report.of_tally(config, names, source, tally, raw_short_side).metadata()

    with ImageProgress("preparing", len(ordered)) as progress:
        inspected = inspection.inspect_all(ordered, source.read, workers, raw_short_side)
        with contextlib.closing(inspected):
            try:
                path = imagenet100.write(
                    dataset=dataset,
                    config=config,
                    class_ids=list(source.class_ids),
                    splits={split: len(splits[split]) for split in SPLITS},
                    stream=_examples(inspected, tally, progress, on_bad),
                    metadata=metadata,
                    directory=staging,
                    raw=raw_short_side > 0,
                )
            except RuntimeError as error:  # what array_record makes of a full disk
                raise DataError(f"cannot write {staging}: {error}; make room, or give another --data_dir") from error
    _check_bad(tally, on_bad)
    report = Report.of_tally(config, names, source, tally, raw_short_side)
    Report.of_prepared(Path(path))  # opens the result as training will, and looks whether all images are there
    tally.write_csv(Path(path) / "odd.csv", source.ignored)
    return report


def _examples(inspected, tally, progress, on_bad):
    """Yields what is to be stored of each image, None for a bad one, and once nothing will be kept."""
    for done, image in enumerate(inspected, 1):
        label = tally.add(image)
        progress.update(done, bad=len(tally.bad) + len(tally.unread))
        if label is None or tally.unread or (tally.bad and on_bad == "error"):
            yield None
        else:
            name = image.reference.name.encode(errors="surrogateescape").decode(errors="replace")
            yield {"image": image.encoded, "label": label, "file_name": name}


def _check_bad(tally, on_bad):
    """Prints the bad images, and refuses them, or classes of which nothing is left without them."""
    for _, cause in tally.unread + tally.bad:
        say(cause)
    if tally.unread:
        raise DataError(
            f"{len(tally.unread)} images cannot be read: {_some(tally.unread)}; nothing is written. Make them "
            "readable, or remove them, and run the command again"
        )
    if tally.bad and on_bad == "error":
        raise DataError(
            f"{len(tally.bad)} images cannot be used: {_some(tally.bad)}; nothing is written. Repair them, or leave "
            "them out with --on-bad=skip"
        )
    for split in SPLITS:
        for class_id, count in zip(tally.class_ids, tally.counts[split], strict=True):
            if not count:
                raise DataError(f"no {split} image of class {class_id} can be decoded; repair the source")


def _some(failed):
    """The first names of (image, cause)."""
    return ", ".join(image for image, _ in failed[:_NAMED]) + (", ..." if len(failed) > _NAMED else "")


@contextlib.contextmanager
def _locked(directory, config):
    """Keeps other processes from preparing the same data set; those that come meanwhile wait."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{config}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is preparing this data set; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _staging(directory, config):
    """An empty directory for what is not finished, gone afterwards; what a killed process left there goes first."""
    staging = directory / f"incomplete.{config}"
    if staging.exists():
        say(f"removing {staging}, left by a process that was killed")
        shutil.rmtree(staging)
    try:
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _StoppedError(BaseException):
    """A signal came. No Exception, so that nothing on the way takes it for a fault of its own."""


@contextlib.contextmanager
def _ends_cleanly():
    """Turns SIGTERM and SIGINT into a PreemptedError, after everything on the way out has cleaned up."""

    def stop(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # cleaning up takes a moment
        raise _StoppedError(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except _StoppedError as error:
        raise PreemptedError(f"stopped by {error}; nothing is left half-written, run again to start anew") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
