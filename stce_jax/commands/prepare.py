"""The words of `stce prepare`."""

import argparse

from stce_jax.commands import common
from stce_jax.processes.stopping import exit_on_signal

HELP = "make a data set of images in class folders, archives or parquet shards"
EXAMPLES = """
  stce prepare imagenet100 --source=~/ILSVRC2012 --classes=kaggle
  stce prepare imagenet100 --source=~/imagenet100.zip --data_dir=~/data
  stce prepare imagenet2012 --source=~/ILSVRC2012 --val_labels=LOC_val_solution.csv
  stce prepare folder --source=~/flowers --data_dir=~/data --on_bad=skip
  stce prepare imagenet100 --source=~/ILSVRC2012 --raw_short_side=256"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("dataset", help="imagenet100, imagenet2012, or folder for any classes")
    verb.add_argument(
        "--source",
        required=True,
        help="ILSVRC2012's two .tar archives in a directory, a directory or .zip with train/<class>/ and val/<class>/ "
        "or with Kaggle's train.X1 to train.X4 and val.X, or a directory of parquet shards",
    )
    verb.add_argument("--classes", default="", help="imagenet100: kaggle (default), cmc, podnet, or a file of ids")
    common.add_data_dir(verb, "directory of prepared data sets (the user's data directory)")
    verb.add_argument("--on_bad", default="error", help="images that cannot be decoded: error (default) or skip")
    verb.add_argument("--val_labels", default="", help="labels of the validation images, if not beside them")
    verb.add_argument(
        "--raw_short_side",
        type=int,
        default=0,
        help="store pixels instead of files, resized to this short side: larger, and no decoding (0: files)",
    )
    verb.add_argument("--workers", type=int, default=0, help="threads (0: one a core)")


def run(arguments: argparse.Namespace, _: list[str]) -> None:
    with exit_on_signal(arguments.exit_process, "before anything was written"):
        from stce_jax.verbs.prepare import prepare

        prepare(
            arguments.dataset,
            arguments.source,
            classes=arguments.classes,
            data_dir=arguments.data_dir,
            on_bad=arguments.on_bad,
            val_labels=arguments.val_labels,
            workers=arguments.workers,
            raw_short_side=arguments.raw_short_side,
            exit_process=arguments.exit_process if arguments.own_process else None,
        )
