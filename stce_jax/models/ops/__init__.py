"""Arrays in, arrays out: operations without parameters."""
