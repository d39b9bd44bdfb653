"""What an opened dataset is, whatever it is made of."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable

from stce_jax.data.records import Source

SPLITS = ("train", "val")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
      train, val: the images of each split; None for a split of class folders that was not opened.
      class_ids: what identifies the classes, in the order of their labels: WordNet ids, or names of folders.
      class_names: what they are called: ImageNet's words for its 1000 ids, otherwise the id.
      find_fingerprint: returns `fingerprint`; may look at every image.
      mean, std: of the pixels scaled to 0..1, for red, green and blue.
      passed_over: which files of class folders are no images, in one line; "" if there are none.
    """

    train: Source | None
    val: Source | None
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    find_fingerprint: Callable[[], str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    passed_over: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the classes and images: equal for the same images, labels and order."""
        return self.find_fingerprint()


def hash_of(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, as hexadecimal digits."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode(errors="surrogateescape") + b"\n")
    return total.hexdigest()
