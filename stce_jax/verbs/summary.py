"""`stce models`: what each model costs, in parameters and multiply-adds."""

from typing import Any

from stce_jax.analysis.costs import count_model, count_reduction
from stce_jax.errors import ConfigError
from stce_jax.models.bodies import BODIES
from stce_jax.models.factory import create_model, list_models, presets, takes_reductions
from stce_jax.training.other_reduction import parse, parse_options


def bodies() -> dict[str, tuple[list[str], list[str]]]:
    """{body: (its models with its own embedding, or patches, and endings of their names with others)}."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name, preset in presets().items():
        names, endings = found.setdefault(preset.body, ([], []))
        ending = f"_{preset.embedding}"
        if preset.embedding == getattr(BODIES[preset.body], "EMBEDDING", "patch"):
            names.append(name)
        elif ending not in endings:
            endings.append(ending)
    return found


def summarize(
    pattern: str = "*", *, image_size: int = 224, num_classes: int = 100, reduction: str = "", options: str = ""
) -> list[dict[str, Any]]:
    """Counts for the models whose names fit a shell pattern.

    Args:
      pattern: such as "*_s_*".
      image_size: side of the images in pixels.
      num_classes: classes of the head.
      reduction: a token reduction for all of them, see `other_reduction.parse`; models that take none are left out.
      options: of all of them, in one word, see `other_reduction.parse_options`.

    Returns:
      [{"name", "parameters", "embedding_parameters", "multiply_adds"}, ...], see `count_model`; with a reduction also
      "all_tokens" and "reduction", see `count_reduction`.

    Raises:
      ConfigError: no model fits, or one cannot take this image size, or has no such option.
    """
    names = list_models(pattern)
    if not names:
        raise ConfigError(f"no model is called {pattern!r}; `stce models` lists all")
    given = parse_options(options)
    if others := given.keys() & {"num_classes", "image_size", "axis_name", "name", "reduced"}:
        raise ConfigError(
            f"{sorted(others)[0]} is no option of a model; give --num_classes, --image_size or another name"
        )
    if not reduction:
        return [_summary(name, image_size, num_classes, **given) for name in names]
    names = [name for name in names if takes_reductions(name)]
    if not names:
        raise ConfigError(f"none of the models {pattern!r} takes a token reduction; vit_* do")
    chosen, own = parse(reduction)
    parts = {"reduction": chosen, **own, **given}
    return [_summary(name, image_size, num_classes, reduced=True, **parts) for name in names]


def _summary(name: str, image_size: int, num_classes: int, reduced: bool = False, **parts: Any) -> dict[str, Any]:
    model = create_model(name, num_classes=num_classes, image_size=image_size, **parts)
    return {"name": name, **count_model(model, image_size), **(count_reduction(model, image_size) if reduced else {})}
