"""The paper's tables as runs, and their report."""
