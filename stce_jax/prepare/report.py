"""What `stce prepare` says: its progress, and the table at the end."""

import dataclasses
import json
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stce_jax.data import catalog
from stce_jax.data.catalog import SPLITS
from stce_jax.data.records import damaged

_EVERY = 10  # seconds between two lines where there is no terminal
_LISTED = 120  # classes; of more, only those with the fewest and the most images are listed
_EXAMPLES = 3  # images named of each oddity
_NOT_STORED = {"examples", "directory"}  # fields of a report


def say(text, file=None):
    """Prints text at once; what the output's encoding lacks, such as file names that are no UTF-8, is escaped."""
    file = file or sys.stdout
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


class ImageProgress:
    """Images done, images a second and the time left: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, verb, total):
        console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._output, self._live = sys.stdout, console.is_terminal and console.is_interactive
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._verb, self._total = verb, total
        self._task = self._bar.add_task(verb, total=total, text="")
        self._start = self._said = time.monotonic()

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()

    def update(self, done, total=None, *, bad=0):
        """Reports that `done` images are done, and how many of them are bad."""
        now = time.monotonic()
        rate = done / max(now - self._start, 1e-9)
        text = f"{rate:,.0f} images/s" + (f"  {bad:,} bad" if bad else "")
        self._bar.update(self._task, completed=done, total=total, text=text)
        if not self._live and (now - self._said >= _EVERY or done == (total or self._total)):
            self._said = now
            minutes, seconds = divmod(round((self._total - done) / rate), 60)
            left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
            say(f"{self._verb} {done:,} of {self._total:,} images  {text}  {left}", self._output)


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
      ignored: number of files passed over because they are no images by their name or place.
      other_classes: number of classes of the source that are not wanted.
      raw_short_side: pixels of the short side, if pixels are stored and not files; 0: files. Stored only if not 0.
      examples: {kind: some images}; not stored.
      directory: where it is; not stored.
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

    @classmethod
    def of_tally(cls, config, class_names, source, tally, raw_short_side=0):
        """The report of what has just been written."""
        examples = {}
        for kind, image, _ in tally.odd:
            if len(examples.setdefault(kind, [])) < _EXAMPLES:
                examples[kind].append(image)
        return cls(
            config=config,
            fingerprint=tally.fingerprint,
            source=source.kind,
            class_ids=tally.class_ids,
            class_names=tuple(class_names),
            counts=tally.counts,
            odd=tally.odd_counts(),
            bad=len(tally.bad),
            ignored=source.ignored.count,
            other_classes=source.other_classes,
            raw_short_side=raw_short_side,
            examples=examples | {"bad": [image for image, _ in tally.bad[:_EXAMPLES]]},
        )

    @classmethod
    def of_prepared(cls, directory):
        """The report of a data set prepared earlier; DataError if that is damaged, or not all of it is there."""
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
            if len(source) != expected[split]:
                raise damaged(directory, f"it has {len(source):,} of {expected[split]:,} {split} images")
            source.check_shards()
        return cls(**stored, directory=str(directory))

    def metadata(self):
        """What is stored with the data."""
        left_out = _NOT_STORED | ({"raw_short_side"} if not self.raw_short_side else set())
        fields = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in fields if name not in left_out}

    def table(self):
        """Images a class, what is odd, and the fingerprint, as text."""
        train, val = (self.counts[split] for split in SPLITS)
        lines = [f"{'class':<12}{'train':>9}{'val':>8}  name"]
        lines += [f"{self.class_ids[k]:<12}{train[k]:>9,}{val[k]:>8,}  {self.class_names[k]}" for k in self._listed()]
        if len(lines) <= len(self.class_ids):
            lines.append(f"... of {len(self.class_ids):,} classes, those with the fewest and the most training images")
        lines.append(f"{'all':<12}{sum(train):>9,}{sum(val):>8,}  {len(self.class_ids):,} classes")
        lines.append(f"{'a class':<12}{_span(train):>9}{_span(val):>8}")
        lines += [f"{count:>8,}  {kind}{self._some(kind)}" for kind, count in self.odd.items()]
        lines.append(f"{self.bad:>8,}  left out: cannot be decoded{self._some('bad')}")
        lines.append(f"{self.ignored:>8,}  files passed over: no images by their name or place")
        if self.other_classes:
            lines.append(f"{self.other_classes:>8,}  other classes of the source")
        lines.append(f"fingerprint {self.fingerprint}")
        return "\n".join([*lines, f"prepared in {self.directory}; all that is odd is listed in odd.csv there"])

    def _listed(self):
        everything = range(len(self.class_ids))
        if len(everything) <= _LISTED:
            return everything
        ordered = sorted(everything, key=lambda k: self.counts["train"][k])
        return sorted(ordered[:5] + ordered[-5:])

    def _some(self, kind):
        names = self.examples.get(kind, [])
        count = self.bad if kind == "bad" else self.odd[kind]
        return (": " + ", ".join(names) + (", ..." if count > len(names) else "")) if names else ""


def _span(counts):
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,}-{max(counts):,}"
