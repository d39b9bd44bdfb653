"""Models timed in turn: `model_specs` (which) and `contenders` (compiled, warm, measured), on `turns`."""
