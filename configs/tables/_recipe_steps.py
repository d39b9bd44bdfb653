"""The steps of the forward selection so far: `python benchmarks/recipe_steps.py --scale=SCALE` adds the next one.

Each step is a recipe: names of `recipe.INGREDIENTS`, first those that are kept, then the candidate.
"""

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
    ),
    "medium": (),
}
