"""Pages of HTML that need nothing but a browser: what a model sees, and the curves of runs while they train."""
