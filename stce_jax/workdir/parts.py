"""The parts of `config.model`: which module each one chooses, and which sections nothing reads.

JAX is imported only where a preset or a table of modules has to be looked up.
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from stce_jax.configs import default
from stce_jax.errors import ConfigError

# Part -> (module, name) of the table of the modules that it can be.
TABLES = {
    "body": ("stce_jax.models.bodies", "BODIES"),
    "embedding": ("stce_jax.models.embeddings", "EMBEDDINGS"),
    "reduction": ("stce_jax.models.reductions", "REDUCTIONS"),
}


class NotRegisteredError(ConfigError):
    """A run uses a module that this process does not know."""


def chosen(model: Mapping[str, Any]) -> dict[str, str | None]:
    """The name of each part's module, by its own name or the preset's; None: no module, or an unknown preset."""
    names = {part: model[part]["name"] for part in TABLES}
    if None in names.values():
        from stce_jax.models.factory import presets

        if preset := presets().get(model["name"]):
            names["body"] = names["body"] or preset.body
            names["embedding"] = names["embedding"] or preset.embedding
    return names


def options(model: Mapping[str, Any]) -> dict[str, Any]:
    """The parts as `factory.build_model` takes them: of each its name and the options of the chosen module."""
    built: dict[str, Any] = {}
    for part, name in chosen(model).items():
        built[part] = {"name": model[part]["name"]}
        if name in model[part]:
            built[part] |= model[part][name]
    return built


def all_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's name and every option of its modules as one flat dict, what is None filled in from the preset."""
    from stce_jax.models.factory import model_options

    sections = options(model)
    names = {part: name for part, own in sections.items() if (name := own.pop("name")) is not None}
    given = {key: value for own in sections.values() for key, value in own.items() if value is not None}
    return {"name": model["name"], **names, **model_options(model["name"], dtype=model["dtype"], **names, **given)}


def place(key: str, model: Mapping[str, Any]) -> str:
    """Where `config.model` has an option of one of the chosen modules: "body.vit.width" for "width".

    Raises:
      ConfigError: none of them has such an option.
    """
    if key in ("name", "dtype"):
        return key
    sections = {f"{part}.{name}": model[part][name] for part, name in chosen(model).items() if name in model[part]}
    for section, own in sections.items():
        if key in own:
            return f"{section}.{key}"
    known = ", ".join(option for own in sections.values() for option in own)
    raise ConfigError(f"{model['name']} has no option {key!r}; its options are {known}, dtype")


@functools.cache
def own_sections() -> dict[str, tuple[str, ...]]:
    """Part -> the entries of its section: its "name", and those of the package's own modules."""
    model = default.get_config().model
    return {part: tuple(model[part]) for part in TABLES}


def is_registered(part: str, name: str) -> bool:
    """Whether a module has that name: the package's, or another's that a config file has added to the table."""
    if name in own_sections()[part]:
        return True
    module, table = TABLES[part]
    return name in getattr(importlib.import_module(module), table)


def added_sections(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(part, name) of the sections that the package's own modules do not have."""
    own = own_sections()
    return [(part, name) for part in TABLES for name in model[part] if name not in own[part]]


def reads(key: str, names: Mapping[str, str | None]) -> bool:
    """Whether a run reads a key such as "model.embedding.conv.stem_widths", if it has the chosen modules `names`."""
    words = key.split(".")
    if len(words) < 4 or words[1] not in TABLES or names["body"] is None:  # no body: an unknown preset
        return True
    return names[words[1]] == words[2]


def check_read(words: Sequence[str], config: config_dict.ConfigDict) -> None:
    """Raises ConfigError if an override sets an option of a module that the config does not choose.

    Args:
      words: such as "--config.model.embedding.patch.patch_size=8".
      config: with the overrides.
    """
    for word in words:
        keys = word.lstrip("-").partition("=")[0].split(".")[1:]  # model, embedding, patch, patch_size
        if len(keys) < 4 or keys[1] not in TABLES:
            continue
        part, name = keys[1], chosen(config.model)[keys[1]]
        if name != keys[2]:
            raise ConfigError(
                f"--config.{'.'.join(keys)} is an option of the {part} {keys[2]!r}; the model's {part} is {name!r}; "
                f"leave it out, or choose that {part}: --config.model.{part}.name={keys[2]}"
            )


def check_modules(config: config_dict.ConfigDict) -> None:
    """Takes the sections of unknown modules out of a run's unlocked config, if the run does not use them.

    Raises:
      NotRegisteredError: the run uses a module that is not part of the package, and no config file has registered it.
    """
    from stce_jax.models.factory import presets

    used = {part: config.model[part].name for part in TABLES}
    for part, name in added_sections(config.model):
        if not is_registered(part, name) and name != used[part]:
            del config.model[part][name]
    unknown = [(part, name) for part, name in used.items() if name is not None and not is_registered(part, name)]
    if not unknown and config.model.name not in presets():
        unknown = [("model", config.model.name)]
    for part, name in unknown:
        raise NotRegisteredError(
            f"the run uses the {part} {name!r}, which is not part of stce_jax; give the config file that registers it: "
            "--config=FILE"
        )
