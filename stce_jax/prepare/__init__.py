"""Writing datasets that `data` reads: find a source's images, inspect them, write them, report."""
