"""What a prepared data set holds: stored beside it, and printed as a table."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from stce_jax.data import catalog
from stce_jax.data.dataset import SPLITS
from stce_jax.data.records import TfdsSource, damaged
from stce_jax.prepare.inspection import SAME_BYTES, Tally
from stce_jax.prepare.sources.listing import NAMED, first_names
from stce_jax.prepare.sources.references import Source

_LISTED = 120  # classes; of more, only those with the fewest and the most images are listed
_NOT_STORED = {"examples", "directory", "passed_over"}  # fields of a report


@dataclasses.dataclass(frozen=True)
class Report:
    """What a prepared data set holds.

    Attributes:
      config: name of the tfds config: the list of classes and its hash.
      fingerprint: see `inspection.Tally`.
      source: what it was made of, in words.
      class_ids, class_names: in the order of their labels.
      counts: {split: images of each class}.
      odd: {kind: number of images}.
      bad: number of images left out because they cannot be decoded.
      ignored: number of files that were passed over: they are no images, or not in their place.
      other_classes: number of classes of the source that were not selected.
      raw_short_side: pixels of the short side, if pixels are stored and not files; 0: files. Stored only if not 0.
      examples: {kind: some images}; not stored.
      directory: where it is; not stored.
      passed_over: how many files were, why, and some of them, in words; not stored.
    """

    config: str
    fingerprint: str
    source: str
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    counts: dict[str, list[int]]
    odd: dict[str, int]
    bad: int
    ignored: int
    other_classes: int
    raw_short_side: int = 0
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    directory: str = ""
    passed_over: str = ""

    @classmethod
    def of_tally(
        cls, config: str, class_names: Iterable[str], source: Source, tally: Tally, raw_short_side: int = 0
    ) -> Self:
        """The report of what has just been written."""
        examples: dict[str, list[str]] = {}
        for kind, image, _ in tally.odd:
            if len(examples.setdefault(kind, [])) < NAMED:
                examples[kind].append(image)
        examples |= tally.same
        return cls(
            config=config,
            fingerprint=tally.fingerprint,
            source=source.kind,
            class_ids=tally.class_ids,
            class_names=tuple(class_names),
            counts=tally.counts,
            odd=tally.odd_counts(),
            bad=len(tally.bad),
            ignored=source.passed_over.count,
            other_classes=source.other_classes,
            raw_short_side=raw_short_side,
            examples=examples | {"bad": [image for image, _ in tally.bad[:NAMED]]},
            passed_over=source.passed_over.reasons_text(),
        )

    @classmethod
    def of_prepared(cls, directory: Path) -> Self:
        """The report of a data set prepared earlier; DataError if that is damaged or incomplete."""
        dataset = catalog.open_prepared(directory)
        fields = {field.name for field in dataclasses.fields(cls)} - _NOT_STORED
        try:
            stored = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
            if odd := fields ^ (stored.keys() | {"raw_short_side"}):
                raise ValueError(f"metadata.json lacks or should not have {', '.join(sorted(odd))}")
            expected = {split: sum(stored["counts"][split]) for split in SPLITS}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(directory, error) from error
        for split in SPLITS:
            source = getattr(dataset, split)
            assert isinstance(source, TfdsSource)
            if len(source) != expected[split]:
                raise damaged(directory, f"it has {len(source):,} of {expected[split]:,} {split} images")
            source.check_shards()
        return cls(**stored, directory=str(directory))

    def metadata(self) -> dict[str, Any]:
        """What is stored with the data."""
        left_out = _NOT_STORED | ({"raw_short_side"} if not self.raw_short_side else set())
        fields = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in fields if name not in left_out}

    def lines(self) -> list[str]:
        """The number of images of each class, oddities, and the fingerprint, as lines of text."""
        train, val = (self.counts[split] for split in SPLITS)
        lines = [f"{'class':<12}{'train':>9}{'val':>8}  name"]
        lines += [f"{self.class_ids[k]:<12}{train[k]:>9,}{val[k]:>8,}  {self.class_names[k]}" for k in self._listed()]
        if len(lines) <= len(self.class_ids):
            lines.append(f"... of {len(self.class_ids):,} classes, those with the fewest and the most training images")
        lines.append(f"{'all':<12}{sum(train):>9,}{sum(val):>8,}  {len(self.class_ids):,} classes")
        lines.append(f"{'a class':<12}{_span(train):>9}{_span(val):>8}")
        lines += [f"{count:>8,}  {kind}{self._some(kind)}" for kind, count in self.odd.items()]
        lines.append(f"{self.bad:>8,}  left out: cannot be decoded{self._some('bad')}")
        lines.append(f"{self.ignored:>8,}  files passed over{': ' * bool(self.passed_over)}{self.passed_over}")
        if self.other_classes:
            lines.append(f"{self.other_classes:>8,}  other classes of the source")
        lines.append(f"fingerprint {self.fingerprint}")
        return [*lines, f"prepared in {self.directory}; all that is odd is listed in odd.csv there"]

    def _listed(self) -> Sequence[int]:
        everything = range(len(self.class_ids))
        if len(everything) <= _LISTED:
            return everything
        ordered = sorted(everything, key=lambda k: self.counts["train"][k])
        return sorted(ordered[:5] + ordered[-5:])

    def _some(self, kind: str) -> str:
        names = self.examples.get(kind, [])
        total = self.bad if kind == "bad" else self.odd[kind]
        if kind.startswith(SAME_BYTES):  # the names are of groups: fewer than images
            total = len(names)
        return ": " + first_names(names, total) if names else ""


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,}-{max(counts):,}"
