"""Datasets, written once and read by `data`."""
