"""Lists of ImageNet classes by WordNet id, and their names.

Three lists go by the name ImageNet100: Kaggle's data set "imagenet100", the list of Contrastive Multiview Coding (Tian
et al. 2020), and the first hundred classes, as PODNet (Douillard et al. 2020) takes them. They are different data sets:
Kaggle's and CMC's have 8 classes in common. A label is a class's place in the sorted list of ids. Reading needs these
lists as well as preparing: a prepared dataset is found by its classes.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stce_jax.errors import ConfigError
from stce_jax.paths import read_regular

LISTS = ("kaggle", "cmc", "podnet")
_FOLDER = Path(__file__).parent / "classes"
_MAX_BYTES = 16 * 2**20  # of a file of ids; ImageNet-21k's has less than 1 MiB
_WORDNET_ID = re.compile(r"n\d{8}")


def load_class_ids(classes: str) -> tuple[str, ...]:
    """The sorted class ids of a list.

    Args:
      classes: "kaggle", "cmc", "podnet", "all" (the 1000 classes of ILSVRC2012), or the path of a text file with a
        WordNet id at the start of each line; what follows it, empty lines and lines that start with # are ignored.

    Raises:
      ConfigError: there is no such list or file, or a line of it is not a WordNet id, or is there twice.
    """
    if classes == "all":
        return tuple(_words())
    path = _FOLDER / f"imagenet100_{classes}.txt" if classes in LISTS else Path(os.path.expanduser(classes))
    try:
        lines = read_regular(path, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(
            f"cannot read the class list {classes!r}: {cause}; give {', '.join(LISTS)}, or a file of WordNet ids"
        ) from error
    ids = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for index, class_id in enumerate(ids):
        if not is_wordnet_id(class_id):
            raise ConfigError(f"{path}: {class_id[:40]!r} is not a WordNet id; write one like n01440764 on each line")
        if class_id in ids[:index]:
            raise ConfigError(f"{path}: {class_id} is there twice; remove one")
    if not ids:
        raise ConfigError(f"{path} lists no class; write a WordNet id like n01440764 on each line")
    return tuple(sorted(ids))


def list_name(classes: str) -> str:
    """What a list is called in names of directories: its own name, or a file's stem."""
    return safe_name(classes if classes in (*LISTS, "all") else Path(classes).stem)


def list_hash(class_ids: Iterable[str]) -> str:
    """Eight hexadecimal digits that identify these classes, in whatever order they are given."""
    return hashlib.sha256("\n".join(sorted(class_ids)).encode()).hexdigest()[:8]


def class_names(class_ids: Iterable[str]) -> tuple[str, ...]:
    """The words for each class: those of ILSVRC2012 where the id is one of its 1000, otherwise the id itself."""
    words = _words()
    return tuple(words.get(class_id, class_id) for class_id in class_ids)


def is_wordnet_id(text: str) -> bool:
    return _WORDNET_ID.fullmatch(text) is not None


def safe_name(text: str) -> str:
    """Text as part of a directory's name: letters, digits, "_" and "." as they are, all else "_"."""
    return re.sub(r"[^\w.]+", "_", text, flags=re.ASCII).strip("._") or "images"


def ids_of_words(names: Sequence[str]) -> list[str] | None:
    """WordNet ids of ILSVRC2012's classes by their words.

    "crane" names two classes; such a name is decided by its neighbours where the names come in the order of their ids.

    Args:
      names: the words of each label, e.g. "tench, Tinca tinca" or "tench".

    Returns:
      The ids in the order of the names, or None if a name is unknown or stays ambiguous, or two names are one class.
    """
    found = [_candidates(name) for name in names]
    if not all(found):
        return None
    ids: list[str | None] = [next(iter(candidates)) if len(candidates) == 1 else None for candidates in found]
    for index, candidates in enumerate(found):
        if ids[index] is None:
            before = next((known for known in reversed(ids[:index]) if known), "")
            after = next((known for known in ids[index + 1 :] if known), "o")
            fitting = [class_id for class_id in candidates if before < class_id < after]
            known = [class_id for class_id in ids if class_id]
            if len(fitting) != 1 or known != sorted(known):
                return None
            ids[index] = fitting[0]
    known = [class_id for class_id in ids if class_id]
    return known if len(set(known)) == len(ids) else None


@functools.cache
def _words() -> dict[str, str]:
    """{WordNet id: words} of ILSVRC2012's 1000 classes, sorted."""
    _, *lines = (_FOLDER / "imagenet1000.txt").read_text(encoding="utf-8").splitlines()  # the first says what it is
    return dict(line.split("\t") for line in lines)


def _candidates(name: str) -> list[str]:
    """Ids whose words are the name; else whose first word is; else that have it among their words."""
    name = name.replace("_", " ").strip()
    rules: list[Callable[[list[str]], list[str]]] = [lambda words: [", ".join(words)], lambda words: words[:1], list]
    folds: list[Callable[[str], str]] = [str, str.lower]
    for fold in folds:  # "Cardigan" is a dog, "cardigan" is not
        for rule in rules:
            ids = [key for key, words in _words().items() if fold(name) in map(fold, rule(words.split(", ")))]
            if ids:
                return ids
    return []
