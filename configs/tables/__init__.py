"""One file a table of the paper, or a study of ours: `get_config(scale)` is what its rows share, `sweep(scale)` yields
the rows.

A row is a dict:
  run        name of the training run; rows of several tables that are the same run share its name
  label      what the row is called in the report
  overrides  {key of the config: value} on top of get_config(scale)
  against    names of the runs that it is compared with
  paper      what the paper prints for it: "top1" (%), "images_per_second", and as printed "parameters" and
             "embedding_parameters"; {} if nothing
  decides    whether a study's question is answered by this row: such rows come first, with all seeds; False if missing

`stce reproduce` trains them, and its report has the `stce train` command of each.
"""
