"""Formats that `stce export` writes, a file each."""
