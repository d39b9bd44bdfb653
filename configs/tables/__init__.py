"""One file a table of the paper: `get_config(scale)` is what its rows share, `sweep(scale)` yields the rows.

A row is a dict:
  run        name of the training run; rows of several tables that are the same run share its name
  label      what the row is called in the report
  overrides  {key of the config: value} on top of get_config(scale)
  paper      what the paper prints for it: "top1" (%), "parameters" (as printed), "images_per_second"; {} if nothing

`stce reproduce` trains them; one row alone: stce train --config=tables/table6:small --config.model.name=vit_ti_patch ...
"""
