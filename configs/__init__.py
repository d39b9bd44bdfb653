"""Shipped configurations; `--config=NAME` finds NAME.py here. They import ml_collections alone."""
