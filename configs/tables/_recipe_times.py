"""Milliseconds that a training image takes, of each row of `recipe`: `benchmarks/recipe_times.py --write` writes them.

They are measured in turn on one machine and give every row the epochs that take as long as the base's. They are data of
the protocol: measured once, before the first run of a scale, and no run measures its own.
"""

from collections.abc import Sequence

# Scale -> run -> ms an image. Where a row is missing, see `ratio`.
MS: dict[str, dict[str, float]] = {
    "smoke": {},
    "small": {
        "base": 2.502,
        "muon": 2.635,
        "rope_axial": 2.569,
        "mean_pooling": 2.797,
        "conv": 2.146,
        "light_mixing": 2.667,
        "three_augment": 2.42,
        "schedule_free": 2.466,
        "progressive": 1.899,
        "swiglu": 2.697,
        "patch_dropout": 1.967,
        "modern": 1.454,
        "first_round": 1.824,
        "batch_50": 2.461,
        "batch_25": 2.332,
        "light_crop": 2.541,
        "rate_double": 2.46,
        "patch_dropout_half": 1.475,
        "one_iteration": 2.406,
    },
    "medium": {
        "base": 16.58,
        "modern": 6.986,
    },
}


def ratio(scale: str, run: str, parts: Sequence[str]) -> float:
    """How long an image of a row takes, over one of the base.

    Args:
      scale: one of `recipe.VARIANTS`.
      run: name of a row.
      parts: its ingredients. Of a row that is not measured, their ratios are multiplied; an ingredient that is not
        measured counts as 1.
    """
    measured = MS.get(scale, {})
    if run in measured:
        return measured[run] / measured["base"]
    product = 1.0
    for part in parts:
        product *= measured[part] / measured["base"] if part in measured else 1.0
    return product
