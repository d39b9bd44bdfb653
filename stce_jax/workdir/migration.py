"""Configs of earlier versions: what their keys are called now.

Form 1 (up to version 0.1) had all options of a model side by side, `model.width` and `model.cell`; form 2 has a section
for each module. `FLAT_KEYS` says which sections have a key now. Config files that set flat keys need nothing from here:
`config.model` takes them itself, see `configs/_flat.py`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from stce_jax.configs._flat import FLAT_KEYS
from stce_jax.errors import ConfigError
from stce_jax.platform import terminal
from stce_jax.workdir import parts

FORM = 2  # of the configs that this version writes


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as nested dicts in this version's form, without the entry "form".

    Args:
      values: what `config.json` or a checkpoint holds; without "form" it is of form 1.

    Raises:
      ConfigError: the form is newer than this version, or the options of a module that it uses are missing.
    """
    form, rest = values.get("form", 1), {key: value for key, value in values.items() if key != "form"}
    if not isinstance(form, int) or form > FORM:
        raise ConfigError(
            f"config.json has form {form!r}, this version of stce_jax reads forms up to {FORM}; use the version that "
            "wrote it"
        )
    if form >= 2:
        _check_sections(rest["model"])
    elif "model" in rest:
        rest["model"] = _with_sections(rest["model"])
    return rest


def _check_sections(model: Mapping[str, Any]) -> None:
    """Lets a config lack the sections of modules that came later, as it cannot use them, and of no others."""
    own = parts.own_sections()
    missing = [(part, name) for part in parts.TABLES for name in own[part] if name not in model[part]]
    names = parts.chosen(model) if missing else {}
    for part, name in missing:
        if name == names[part]:
            raise ConfigError(f"config.json is damaged: it lacks the options of the {part} {name!r}")


def _with_sections(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`config.model` of form 2 from that of form 1."""
    model = {key: value for key, value in flat.items() if key not in FLAT_KEYS}
    names = parts.chosen({"name": model.get("name"), **{part: {"name": None} for part in parts.TABLES}})
    for key in FLAT_KEYS:
        section = _section(key, names) if flat.get(key) is not None else None
        if section:
            part, _, name = section.partition(".")
            model.setdefault(part, {}).setdefault(name, {})[key] = flat[key]
    return model


def new_words(words: Sequence[str], model: config_dict.ConfigDict) -> list[str]:
    """Overrides of a command line with today's keys; the first use of an old key is noted on standard error.

    Args:
      words: such as "--config.model.width=96"; a value may be a word of its own.
      model: `config.model` before the overrides.

    Raises:
      ConfigError: the chosen modules have no such option.
    """
    flat = {f"model.{key}": key for key in FLAT_KEYS}
    if not any(flag_key(word) in flat for word in words):
        return list(words)
    model = model.copy_and_resolve_references()
    for name in ("name", *(f"{part}.name" for part in parts.TABLES)):
        model.update_from_flattened_dict({name: _last_value(words, f"model.{name}", model[name])})
    changed = []
    for word in words:
        key = flag_key(word)
        if key in flat:
            if word.endswith("=None") and _section(flat[key], parts.chosen(model)) is None:
                continue  # the module has no such option to be taken away
            place = f"model.{parts.place(flat[key], model)}"
            start, _, rest = word.partition(key)
            _note(f"{start}{key}", f"{start}{place}")
            word = f"{start}{place}{rest}"
        changed.append(word)
    return changed


def flag_key(word: str) -> str:
    """The key that an override sets: "model.name" of "--config.model.name=vit_s_stce"."""
    return word.lstrip("-").partition("=")[0].partition(".")[2]


def _section(key: str, names: Mapping[str, str | None]) -> str | None:
    """The section of a flat key among those of the chosen modules; None: none has it."""
    sections = (f"{part}.{name}" for part, name in names.items())
    return next((section for section in sections if section in FLAT_KEYS[key]), None)


def _last_value(words: Sequence[str], key: str, default: str | None) -> str | None:
    """What overrides make of a key."""
    for index in reversed(range(len(words))):
        if flag_key(words[index]) == key:
            _, equals, value = words[index].partition("=")
            if not equals:
                value = words[index + 1] if index + 1 < len(words) else ""
            return None if value == "None" else value
    return default


@functools.cache
def _note(old: str, new: str) -> None:
    """Says once, and in one process of a run, how a key is spelled now."""
    from stce_jax.processes import peers

    if not peers.several() or peers.is_main():
        terminal.warn(f"{old} is now {new}")
