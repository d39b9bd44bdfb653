"""Several processes of one run, the signals that stop them, and steps that take too long."""
