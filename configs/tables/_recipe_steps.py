"""The forward selections so far: `python benchmarks/recipe_steps.py --scale=SCALE` adds what comes next.

Each step is a recipe: names of `recipe.INGREDIENTS`, first those that are kept, then the candidate.
"""

FIRST: dict[str, tuple[str, ...]] = {  # what the first round gave; (): it is not finished
    "smoke": ("mean_pooling",),  # to prove the machinery
    "small": ("schedule_free", "light_crop", "patch_dropout", "swiglu", "batch_50"),
    "medium": (),
}

STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "smoke": (("mean_pooling", "conv"),),  # to prove the machinery
    "small": (
        ("schedule_free", "conv"),
        ("schedule_free", "rope_axial"),
        ("schedule_free", "light_crop"),
        ("schedule_free", "light_crop", "rope_axial"),
        ("schedule_free", "light_crop", "patch_dropout"),
        ("schedule_free", "light_crop", "patch_dropout", "swiglu"),
        ("schedule_free", "light_crop", "patch_dropout", "swiglu", "progressive"),
        ("schedule_free", "light_crop", "patch_dropout", "swiglu", "batch_50"),
        ("schedule_free", "light_crop", "swiglu", "patch_dropout_half", "batch_25"),
        ("schedule_free", "light_crop", "swiglu", "batch_50", "patch_dropout_half", "one_iteration"),
    ),
    "medium": (),
}
