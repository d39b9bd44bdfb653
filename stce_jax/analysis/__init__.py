"""Scores, intervals, pictures and timings of what has been trained."""
