"""What a body, an embedding and a reduction must have, checked before one is built: a missing part is one line."""

import dataclasses
from typing import Any, NamedTuple

from stce_jax.errors import ConfigError

GIVEN = ("query", "key", "value", "weights")  # what attention can give to a reduction


class Contract(NamedTuple):
    """Names that a class of one kind must have.

    Attributes:
      fields: that the model sets itself.
      methods: that bodies or verbs call.
      attributes: that are no methods.
    """

    fields: tuple[str, ...]
    methods: tuple[str, ...]
    attributes: tuple[str, ...] = ()


CONTRACTS = {
    "body": Contract(
        ("embedding", "num_classes", "image_size", "dtype"),
        ("__call__", "features", "tokens", "grid", "unshaped_options", "fit_weights"),
    ),
    "embedding": Contract(("width", "dtype"), ("__call__", "grid", "feature_places")),
    "reduction": Contract(("blocks",), ("__call__",), ("needs", "needs_class_token")),
}


def check_contract(kind: str, name: str, module: Any, options: dict[str, Any]) -> None:
    """Raises ConfigError if a module's class lacks something.

    Args:
      kind: "body", "embedding" or "reduction".
      name: in the table.
      module: the linen module's class.
      options: its options and their defaults.
    """
    contract, known = CONTRACTS[kind], {field.name for field in dataclasses.fields(module)}
    missing = [f"field {field!r}" for field in contract.fields if field not in known]
    missing += [f"method {method!r}" for method in contract.methods if not callable(getattr(module, method, None))]
    missing += [f"attribute {own!r}" for own in contract.attributes if not hasattr(module, own)]
    if missing:
        raise ConfigError(f"the {kind} {name!r} has no {', no '.join(missing)}; see the contract of stce_jax.models")
    if bare := [option for option, default in options.items() if default is dataclasses.MISSING]:
        raise ConfigError(f"the option {bare[0]!r} of the {kind} {name!r} has no default; give it one")
    if kind == "reduction" and (unknown := [needed for needed in module.needs if needed not in GIVEN]):
        raise ConfigError(f"the reduction {name!r} needs {unknown[0]!r}; attention can give {', '.join(GIVEN)}")
