"""Inside a model, drawn: `introspection` gets arrays out of it, `pictures` paints them, `sheets` makes one a page."""
