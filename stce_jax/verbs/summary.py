"""`stce models`: what each model costs, in parameters and multiply-adds."""

from typing import Any

from stce_jax.analysis.costs import count_model
from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model, list_models


def summarize(pattern: str = "*", *, image_size: int = 224, num_classes: int = 100) -> list[dict[str, Any]]:
    """Counts for the models whose names fit a shell pattern.

    Args:
      pattern: such as "*_s_*".
      image_size: side of the images in pixels.
      num_classes: classes of the head.

    Returns:
      [{"name", "parameters", "embedding_parameters", "multiply_adds"}, ...], see `count_model`.

    Raises:
      ConfigError: no model fits, or one cannot take this image size.
    """
    names = list_models(pattern)
    if not names:
        raise ConfigError(f"no model is called {pattern!r}; `stce models` lists all")
    return [_summary(name, image_size, num_classes) for name in names]


def _summary(name: str, image_size: int, num_classes: int) -> dict[str, Any]:
    model = create_model(name, num_classes=num_classes, image_size=image_size)
    return {"name": name, **count_model(model, image_size)}
