"""Weights and programs, in and out: what a run begins with, and what it is exported as."""
