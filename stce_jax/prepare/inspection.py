"""Inspecting images before they are stored: can each be decoded, what is odd about it, does it occur twice.

Odd images are kept, because `decode_image` has a rule for each; they are reported so that nobody is surprised.
"""

import collections
import contextlib
import csv
import dataclasses
import hashlib
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from PIL import Image

from stce_jax.data.crops import raw_file
from stce_jax.data.dataset import SPLITS
from stce_jax.data.decode import decode_image, open_image
from stce_jax.data.deep_pixels import netpbm_header
from stce_jax.data.finding import PassedOver
from stce_jax.errors import DataError
from stce_jax.prepare.sources.listing import NAMED
from stce_jax.prepare.sources.references import Reference, UnreadableError

_PATIENCE = 2  # seconds that reads may take that nobody needs any more
TINY = 32  # pixels; an image with a shorter side is reported
_ORIENTATION = 0x0112  # EXIF tag
BAD, IGNORED = "cannot be decoded", "passed over"
SAME_BYTES = "same bytes"
_IN_BOTH, _IN_TWO_CLASSES, _TWICE = (
    f"{SAME_BYTES} {where}" for where in ("in train and val", "in two classes", "twice")
)


@dataclasses.dataclass(frozen=True)
class Inspected:
    """An image that was read.

    Attributes:
      reference: which image.
      encoded: the bytes to be stored, its own or its raw pixels; empty if it is bad.
      digest: SHA-256 of them.
      odd: (kind, detail) of each oddity.
      error: why it cannot be used, or "".
      unread: whether that is because it could not be read: the image itself may be good.
    """

    reference: Reference
    encoded: bytes = b""
    digest: bytes = b""
    odd: tuple[tuple[str, str], ...] = ()
    error: str = ""
    unread: bool = False


def inspect_all(
    references: Iterable[Reference], read: Callable[[Reference], bytes], workers: int, raw_short_side: int = 0
) -> Generator[Inspected]:
    """Reads and inspects images in threads; yields an `Inspected` for each in the order given.

    With a `raw_short_side` above 0 their pixels are to be stored, see `raw_file`, not the files.

    At most four images a thread are in memory. Reading, hashing and decoding all release Python's lock. Where it is
    closed early, a read that hangs is not waited for.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: collections.deque[Future[Inspected]] = collections.deque()
    try:
        for reference in references:
            waiting.append(pool.submit(_inspect, reference, read, raw_short_side))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        wait(waiting, _PATIENCE)  # for files to be closed


def _inspect(reference: Reference, read: Callable[[Reference], bytes], raw_short_side: int) -> Inspected:
    try:
        encoded = read(reference)
        image = decode_image(encoded, str(reference))
    except DataError as error:
        return Inspected(reference, error=str(error), unread=isinstance(error, UnreadableError))
    odd = list(_format_oddities(reference.name, encoded))
    height, width, _ = image.shape
    if min(height, width) < TINY:
        odd.append((f"smaller than {TINY} pixels", f"{width} x {height}"))
    if raw_short_side:
        encoded = raw_file(image, raw_short_side)
    return Inspected(reference, encoded, hashlib.sha256(encoded).digest(), tuple(odd))


def _format_oddities(name: str, encoded: bytes) -> Iterator[tuple[str, str]]:
    """Yields (kind, detail)."""
    with contextlib.ExitStack() as stack:
        try:
            image = stack.enter_context(open_image(encoded))
        except Exception:  # simplejpeg takes some files that Pillow does not
            return
        mode, jpeg = image.mode, image.format in ("JPEG", "MPO")
        if not jpeg and name.lower().endswith((".jpg", ".jpeg")):
            yield f"{image.format} named as a JPEG", mode
        if mode == "CMYK":
            yield "CMYK", ""
        deep_ppm = netpbm_header(encoded)
        if mode.startswith("I") or deep_ppm or (image.format == "PNG" and encoded[24:25] == b"\x10"):  # bits a channel
            yield "16 bits a channel", mode
        if mode in ("1", "L", "LA") or mode.startswith("I"):
            yield "grey", mode
        if mode in ("P", "PA"):
            yield "palette", ""
        if mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            yield "transparency (dropped)", mode
        if jpeg and (orientation := _orientation(image)) not in (None, 0, 1):
            yield "EXIF rotation (not applied)", f"orientation {orientation}"


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF, which does not affect decoding
        return None


class Tally:
    """What is known of the images stored so far: counts, fingerprint, oddities, and which bytes occur twice.

    Args:
      class_ids: in the order of their labels.
      total: maximum number of images.
    """

    def __init__(self, class_ids: Sequence[str], total: int) -> None:
        self.class_ids = tuple(class_ids)
        self.counts = {split: [0] * len(class_ids) for split in SPLITS}
        self.odd: list[tuple[str, str, str]] = []  # (kind, image, detail)
        self.bad: list[tuple[str, str]] = []  # (image, cause)
        self.unread: list[tuple[str, str]] = []  # (image, cause)
        self.same: dict[str, list[str]] = {}  # {kind: "one image = another"}, of some images with the same bytes
        self._label = {class_id: label for label, class_id in enumerate(class_ids)}
        self._references: list[Reference] = []
        self._digests = np.zeros((total, 32), np.uint8)
        self._hash = hashlib.sha256("\n".join(class_ids).encode(errors="surrogateescape"))

    def add(self, inspected: Inspected) -> int | None:
        """Adds an image; returns its label, or None if it is bad and must not be stored."""
        reference = inspected.reference
        if inspected.error:
            (self.unread if inspected.unread else self.bad).append((str(reference), inspected.error))
            return None
        label = self._label[reference.class_id]
        self.counts[reference.split][label] += 1
        self._digests[len(self._references)] = np.frombuffer(inspected.digest, np.uint8)
        self._references.append(reference)
        self._hash.update(struct.pack("<4sI", reference.split[:4].encode(), label) + inspected.digest)
        self.odd += [(kind, str(reference), detail) for kind, detail in inspected.odd]
        return label

    @property
    def fingerprint(self) -> str:
        """Identifies the class ids and every image's split, class and stored bytes in their order."""
        return self._hash.hexdigest()

    def add_repeated(self) -> None:
        """Adds to the oddities which images have the same bytes."""
        digests = self._digests[: len(self._references)].view(np.uint64)  # [N, 4]
        order = np.lexsort(digests.T)
        same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        group: list[Reference] = []
        for place, index in enumerate(order):
            group.append(self._references[index])
            if place == len(same) or not same[place]:
                self._add_group(group)
                group = []

    def _add_group(self, group: Sequence[Reference]) -> None:
        for kind, apart in (
            (_IN_BOTH, len({reference.split for reference in group}) > 1),
            (_IN_TWO_CLASSES, len({reference.class_id for reference in group}) > 1),
            (_TWICE, len({(reference.split, reference.class_id) for reference in group}) < len(group)),
        ):
            if apart:
                # Each beside the first of its group, and that beside the second.
                for index, reference in enumerate(group):
                    self.odd.append((kind, str(reference), str(group[0 if index else 1])))
                if len(examples := self.same.setdefault(kind, [])) <= NAMED:
                    more = f" and {len(group) - 3} more" * (len(group) > 3)
                    examples.append(" = ".join(map(str, group[:3])) + more)

    def odd_counts(self) -> dict[str, int]:
        """{kind: number of images}, most frequent first."""
        return dict(collections.Counter(kind for kind, _, _ in self.odd).most_common())

    def write_csv(self, path: Path, passed_over: PassedOver) -> None:
        """Writes kind, image and detail of every odd image, bad image and file that was passed over."""
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(("kind", "image", "detail"))
            table.writerows((BAD, image, cause) for image, cause in self.bad)
            table.writerows(sorted(self.odd))
            table.writerows((IGNORED, name, reason) for name, reason in passed_over.files)
