"""Bodies, one file each."""
