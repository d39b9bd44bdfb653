"""The keys that `config.model` had while it was flat (form 1, up to version 0.1), and what still takes them.

A file of the package, no config. `stce_jax.workdir.migration` reads the same table for `config.json` and command lines.
"""

from typing import Any

from ml_collections import config_dict

_STEMS = ("embedding.conv", "embedding.conv1x1", "embedding.earlyconv", "embedding.stce")
# Old key -> the sections of `config.model` that have it now, under the same name.
FLAT_KEYS = {
    "width": ("body.vit",),
    "depth": ("body.vit",),
    "heads": ("body.vit",),
    "mlp_dim": ("body.vit",),
    "pooling": ("body.vit",),
    "position_embedding": ("body.vit",),
    "drop_path": ("body.vit",),
    "dropout": ("body.vit",),
    "remat": ("body.vit",),
    "scan_layers": ("body.vit",),
    "patch_size": ("embedding.patch",),
    "stem_widths": _STEMS,
    "stem_strides": _STEMS,
    "cell": ("embedding.stce",),
    "iterations": ("embedding.stce",),
    "border": ("embedding.stce",),
    "differentiable": ("embedding.stce",),
}


class ModelConfigDict(config_dict.ConfigDict):
    """`config.model`. Config files written for form 1 may set and read its flat keys, locked or not.

    An old key is stored in its section, never beside it. One that several embeddings have is set for all of them: a
    file may name the model later, and only the chosen embedding's section is read.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in FLAT_KEYS:
            super().__setitem__(key, value)
            return
        for section in FLAT_KEYS[key]:
            self[section][key] = value

    def __getitem__(self, key: str) -> Any:
        if key not in FLAT_KEYS:
            return super().__getitem__(key)
        # The names of form 1 end with their embedding's.
        own = f"embedding.{self.embedding.name or self.name.rpartition('_')[2]}"
        sections = FLAT_KEYS[key]
        return self[own if own in sections else sections[0]][key]
