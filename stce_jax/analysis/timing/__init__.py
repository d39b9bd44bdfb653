"""Models timed in turn."""
