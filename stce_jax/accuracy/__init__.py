"""How good predictions are: `scores` of them, `intervals` of accuracies, `files` that keep an evaluation."""
