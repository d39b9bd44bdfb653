"""The loop, its steps and what holds them together."""
