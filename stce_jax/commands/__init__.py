"""The words of each `stce` verb: its arguments, examples, and what it prints. The verbs are the files beside it.

A module here has HELP (one line), EXAMPLES (lines of commands), `add_arguments(verb)` for an argparse parser, and
`run(arguments, overrides)`, which imports the verb: `stce --help` must start no JAX. `overrides` are words such as
"--config.seed=1", for the verbs that take them (see `common`).
"""
