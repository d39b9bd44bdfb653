"""Which classes weights tell apart: the ids and names that lie beside them, or ImageNet's for a thousand."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stce_jax.data import class_lists
from stce_jax.errors import CheckpointError, shown

LONGEST = 300  # characters of a name; ImageNet's longest words have 131
PLACEHOLDER = re.compile(r"LABEL_\d+")


class Labels(NamedTuple):
    """The classes in the order of the logits.

    Attributes:
      ids, names: see `Dataset`.
      note: where they come from, if not from the weights; "" if they do.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    note: str = ""


def of_timm(config: Mapping[str, Any], count: int) -> Labels:
    """Of timm's config.json, for a head of `count` classes; raises CheckpointError if it is of other classes."""
    _check_count(config.get("num_classes"), "num_classes", count)
    names = config.get("label_names")
    if names is None:
        return unnamed(count)
    ids = _texts(names, "label_names", count)
    described = config.get("label_descriptions")
    if isinstance(described, dict) and all(isinstance(described.get(one), str) for one in ids):
        return _labels(ids, [described[one][:LONGEST] for one in ids])
    return _labels(ids, class_lists.class_names(ids))


def of_hugging_face(config: Mapping[str, Any], count: int) -> Labels:
    """Of Hugging Face's config.json, see `of_timm`."""
    by_number = config.get("id2label")
    if by_number is None:
        return unnamed(count)
    if not isinstance(by_number, dict) or set(by_number) != {str(number) for number in range(len(by_number))}:
        raise CheckpointError("its config.json has an id2label that does not number its classes from 0 on")
    _check_count(len(by_number), "as many labels as", count)
    names = _texts([by_number[str(number)] for number in range(count)], "id2label", count)
    if all(PLACEHOLDER.fullmatch(name) for name in names):
        return unnamed(count)
    ids = class_lists.ids_of_words(names)
    return _labels(ids or names, names)


def unnamed(count: int) -> Labels:
    """The classes of a head that nothing names: ImageNet's 1,000 where there are as many, else LABEL_0 and so on."""
    if count == 1000:
        ids = class_lists.load_class_ids("all")
        return Labels(ids, class_lists.class_names(ids), "1,000 classes without names are taken for ImageNet-1k's")
    names = tuple(f"LABEL_{number}" for number in range(count))
    return Labels(names, names, "its classes have no names")


def _check_count(said: Any, what: str, count: int) -> None:
    if said is not None and said != count:
        raise CheckpointError(f"its config.json says {what} {shown(said)}, its head is of {count} classes")


def _texts(values: Any, key: str, count: int) -> list[str]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or len(values) != count:
        raise CheckpointError(f"its config.json has no list of {count} names as {key}")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise CheckpointError(f"its config.json has {shown(value)} among {key}, which is no name")
    return [value[:LONGEST] for value in values]


def _labels(ids: Sequence[str], names: Sequence[str]) -> Labels:
    """With ids that are different: of a name that is there twice, the later one gets its number."""
    seen: set[str] = set()
    unique = []
    for number, one in enumerate(ids):
        unique.append(f"{one} ({number})" if one in seen else one)
        seen.add(unique[-1])
    return Labels(tuple(unique), tuple(names))
