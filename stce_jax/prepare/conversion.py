"""From a source's images to a finished directory: each is read, inspected and written, in an order that depends on
their names alone."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stce_jax.data import class_lists
from stce_jax.data.dataset import SPLITS
from stce_jax.errors import DataError
from stce_jax.platform.terminal import say
from stce_jax.prepare.inspection import Inspected, Tally, inspect_all
from stce_jax.prepare.messages import ImageProgress, size_text
from stce_jax.prepare.report import Report
from stce_jax.prepare.sources.listing import first_names
from stce_jax.prepare.sources.references import Source, in_order


def convert(
    source: Source, staging: Path, *, dataset: str, config: str, on_bad: str, workers: int, raw_short_side: int
) -> Report:
    """Writes a source's images below the directory `staging`.

    Args:
      source: the images.
      staging: an empty directory.
      dataset, config: name of the data set, and of the directory that it is written to.
      on_bad: "error", or "skip" to leave out images that cannot be decoded.
      workers: threads, 1 or more.
      raw_short_side: 0 to store files, or the short side of stored pixels.

    Raises:
      DataError: images are bad, the images of a class are all bad, or the result cannot be written.
    """
    from stce_jax.prepare import writer  # here, for it imports tfds

    say(f"source: {source.kind}" + (f"; {source.note}" if source.note else ""))
    splits = in_order(source.references)
    ordered = [reference for split in SPLITS for reference in splits[split]]
    if raw_short_side:
        largest, free = len(ordered) * raw_short_side**2 * 4, shutil.disk_usage(staging).free  # 4:3, 3 bytes a pixel
        say(f"raw pixels take up to {size_text(largest)} if the images are 4:3; {size_text(free)} are free")
    if source.stage:
        with ImageProgress("copying", len(ordered)) as progress:
            source.stage(staging, progress.update)
    tally = Tally(source.class_ids, len(ordered))
    names = class_lists.class_names(source.class_ids)

    def metadata() -> dict[str, Any]:
        tally.add_repeated()
        return Report.of_tally(config, names, source, tally, raw_short_side).metadata()

    with ImageProgress("preparing", len(ordered)) as progress:
        inspected = inspect_all(ordered, source.read, workers, raw_short_side)
        with contextlib.closing(inspected):
            try:
                path = writer.write(
                    dataset=dataset,
                    config=config,
                    class_ids=list(source.class_ids),
                    splits={split: len(splits[split]) for split in SPLITS},
                    stream=examples(inspected, tally, progress, on_bad),
                    metadata=metadata,
                    directory=staging,
                    raw=raw_short_side > 0,
                )
            except RuntimeError as error:  # what array_record makes of a full disk
                raise DataError(f"cannot write {staging}: {error}; make room, or give another --data_dir") from error
    _check_bad(tally, on_bad)
    report = Report.of_tally(config, names, source, tally, raw_short_side)
    Report.of_prepared(Path(path))  # opens the result as training will, and checks that it is complete
    tally.write_csv(Path(path) / "odd.csv", source.passed_over)
    return report


def examples(
    inspected: Iterable[Inspected], tally: Tally, progress: ImageProgress, on_bad: str
) -> Iterator[dict[str, Any] | None]:
    """Yields what to store of each image; None for a bad one, and for all once the result will not be kept."""
    for done, image in enumerate(inspected, 1):
        label = tally.add(image)
        progress.update(done, bad=len(tally.bad) + len(tally.unread))
        if label is None or tally.unread or (tally.bad and on_bad == "error"):
            yield None
        else:
            name = image.reference.name.encode(errors="surrogateescape").decode(errors="replace")
            yield {"image": image.encoded, "label": label, "file_name": name}


def _check_bad(tally: Tally, on_bad: str) -> None:
    """Prints the bad images; raises DataError for them, or for a class of which no image is left without them."""
    for _, cause in tally.unread + tally.bad:
        say(cause)
    if tally.unread:
        raise DataError(
            f"{len(tally.unread)} images cannot be read: {_names(tally.unread)}; nothing is written. Make them "
            "readable, or remove them, and run the command again"
        )
    if tally.bad and on_bad == "error":
        raise DataError(
            f"{len(tally.bad)} images cannot be used: {_names(tally.bad)}; nothing is written. Repair them, or leave "
            "them out with --on_bad=skip"
        )
    for split in SPLITS:
        for class_id, count in zip(tally.class_ids, tally.counts[split], strict=True):
            if not count:
                raise DataError(f"no {split} image of class {class_id} can be decoded; repair the source")


def _names(failed: list[tuple[str, str]]) -> str:
    return first_names([image for image, _ in failed])
