"""The `stce` command: one verb a file, errors to one line and an exit code.

JAX is imported by the verbs, not here: `stce --help` answers at once.
"""

import argparse
import os
import sys
import threading
import traceback

from stce_jax.engine.stopping import ends_at_once
from stce_jax.errors import ConfigError, PreemptedError, StceError

EXIT_CODES = """exit codes:
  0 done   2 bad config or arguments   3 bad data   4 bad checkpoint   5 diverged   75 stopped and saved: run again"""

EXAMPLES = {
    "prepare": """examples:
  stce prepare imagenet100 --source=~/ILSVRC2012 --classes=kaggle
  stce prepare imagenet100 --source=~/imagenet100.zip --data_dir=~/data
  stce prepare imagenet2012 --source=~/ILSVRC2012 --val-labels=LOC_val_solution.csv
  stce prepare folder --source=~/flowers --data_dir=~/data --on-bad=skip""",
    "train": """examples:
  stce train --config=digits --workdir=runs/digits
  stce train --config=digits --workdir=runs/tuned --init_from=runs/digits --config.image_size=48
  stce train --config=digits:patch --workdir=runs/patch --config.seed=1
  stce train --config=small_folder --data_dir=~/images --workdir=runs/small --config.model.iterations=1""",
    "show-data": """examples:
  stce show-data --config=digits
  stce show-data --config=stce_vit_s --output=batch.png --step=1000 --config.augment.cutmix=0""",
    "evaluate": """examples:
  stce evaluate --workdir=runs/digits
  stce evaluate --workdir=runs/digits --checkpoint=best""",
    "models": """examples:
  stce models
  stce models 'vit_s_*' --image_size=384""",
}


def main(argv=None):
    """Runs the command line and exits with its code.

    Args:
      argv: its words; by default the process's own, which then may be ended without a return to Python.
    """
    own = argv is None
    argv = sys.argv[1:] if own else argv
    debug = "--debug" in argv
    try:
        arguments, rest = _parser().parse_known_args([word for word in argv if word != "--debug"])
        if rest and not hasattr(arguments, "config"):
            raise ConfigError(f"unknown argument {rest[0]!r}; see stce {arguments.verb} --help")
        arguments.own = own
        arguments.run(arguments, rest)
    except StceError as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, PreemptedError) and (processes := _several()):
            processes.leave()  # all have stopped at the same step, but not all may have finished saving it
        _leave(" ".join(str(error).split()), error.exit_code, own)
    except BrokenPipeError:  # of `stce ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it exits
        sys.exit(141)  # as shells do
    except KeyboardInterrupt:
        _leave("interrupted", 130, own)  # as shells do
    except Exception as error:
        if not _several():
            raise
        traceback.print_exc()
        _leave(f"{type(error).__name__}: {' '.join(str(error).split())}", 1, own)
    sys.exit(0)


def _leave(message, exit_code, own):
    """Ends the process; its own at once if it is one of several, or if something may keep Python from ending."""
    waited_for = [thread for thread in threading.enumerate()[1:] if not thread.daemon]
    views = sys.modules.get("stce_jax.data.views")
    if own and (waited_for or (views and views.slowest()) or _several()):
        _leave_at_once(message, exit_code)
    print(f"stce: {message}", file=sys.stderr, flush=True)
    sys.exit(exit_code)


def _leave_at_once(message, exit_code):
    sys.stdout.flush()
    if processes := _several():
        processes.fail(message, exit_code)
    print(f"stce: {message}", file=sys.stderr, flush=True)
    os._exit(exit_code)


def _several():
    """The module of that name if this process is one of several."""
    processes = sys.modules.get("stce_jax.engine.processes")
    several = getattr(processes, "several", bool)  # a signal may come while the module is being imported
    return processes if several() else None


def _train(arguments, overrides):
    if arguments.init_from:
        overrides = [*overrides, f"--config.init_from={arguments.init_from}"]
    with ends_at_once(_leave_at_once):
        from stce_jax.engine import processes

        processes.start()  # before anything that may be refused: the others are to hear of it
        config = _config(arguments, overrides)
        from stce_jax.train import train

        leave = _leave_at_once if arguments.own else None
        train(config, arguments.workdir, allow_config_change=arguments.allow_config_change, leave=leave)


def _show_data(arguments, overrides):
    config = _config(arguments, overrides)
    from stce_jax.show_data import show_data

    count = len(show_data(config, arguments.output, step=arguments.step))
    print(f"{arguments.output}: the {count} images of step {arguments.step}")


def _config(arguments, overrides):
    from stce_jax.configuration import load_config

    if arguments.data_dir:
        overrides = [*overrides, f"--config.data_dir={arguments.data_dir}"]
    return load_config(arguments.config, overrides)


def _prepare(arguments, _):
    from stce_jax.prepare import prepare

    prepare(
        arguments.dataset,
        arguments.source,
        classes=arguments.classes,
        data_dir=arguments.data_dir,
        on_bad=arguments.on_bad,
        val_labels=arguments.val_labels,
        workers=arguments.workers,
    )


def _evaluate(arguments, _):
    from stce_jax.engine import processes
    from stce_jax.evaluate import evaluate

    processes.start()
    with processes.together():
        result = evaluate(arguments.workdir, arguments.checkpoint, ema=arguments.ema, data_dir=arguments.data_dir)
    first = processes.is_main()
    processes.leave()
    if not first:
        return
    print(
        f"step {result['step']}  epoch {result['epoch']:.2f}  {result['images']} images  loss {result['loss']:.4f}  "
        f"top-1 {100 * result['top1']:.2f}%  top-5 {100 * result['top5']:.2f}%"
    )


def _models(arguments, _):
    from stce_jax.summary import summarize

    rows = summarize(arguments.pattern, image_size=arguments.image_size, num_classes=arguments.num_classes)
    print(f"{'model':<18}{'parameters':>13}{'embedding':>12}{'multiply-adds':>16}")
    for row in rows:
        print(f"{row['name']:<18}{row['parameters']:>13,}{row['embedding_parameters']:>12,}{row['multiply_adds']:>16,}")


def _add_config(verb):
    verb.add_argument("--config", required=True, help="a shipped config (digits, stce_vit_s, ...) or a .py file")
    verb.add_argument("--data_dir", default="", help="where the images are; see configs/default.py, dataset")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser():
    parser = _Parser(
        prog="stce",
        description="Train, compare and reuse vision-transformer embeddings.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name, run, help_text):
        verb = verbs.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.",
            epilog=f"{EXAMPLES[name]}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.set_defaults(run=run)
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return verb

    train = add("train", _train, "train a model, or go on with a run that was stopped")
    _add_config(train)
    train.add_argument("--workdir", required=True, help="directory of the run; made if it is not there")
    train.add_argument("--init_from", default="", help="run, .safetensors or .npz file whose weights to begin with")
    train.add_argument(
        "--allow_config_change", action="store_true", help="go on although the workdir began with another config"
    )
    train.usage = (
        "stce train --config=CONFIG --workdir=DIR [--data_dir=DIR] [--init_from=RUN|FILE] [--allow_config_change] "
        "[--config.KEY=VALUE ...]"
    )

    show = add("show-data", _show_data, "draw a training batch as the model sees it")
    _add_config(show)
    show.add_argument("--output", default="show_data.png", help="the picture to write (default: show_data.png)")
    show.add_argument("--step", type=int, default=0, help="the training step whose batch is drawn (default: 0)")
    show.usage = "stce show-data --config=CONFIG [--data_dir=DIR] [--output=FILE] [--step=N] [--config.KEY=VALUE ...]"

    prepare = add("prepare", _prepare, "make a data set of images in class folders, archives or parquet shards")
    prepare.add_argument("dataset", help="imagenet100, imagenet2012, or folder for any classes")
    prepare.add_argument(
        "--source",
        required=True,
        help="ILSVRC2012's two .tar archives in a directory, a directory or .zip with train/<class>/ and val/<class>/ "
        "or with Kaggle's train.X1 to train.X4 and val.X, or a directory of parquet shards",
    )
    prepare.add_argument("--classes", default="", help="imagenet100: kaggle (default), cmc, podnet, or a file of ids")
    prepare.add_argument("--data_dir", default="", help="directory of prepared data sets (the user's data directory)")
    prepare.add_argument("--on-bad", default="error", help="images that cannot be decoded: error (default) or skip")
    prepare.add_argument("--val-labels", default="", help="labels of the validation images, if not beside them")
    prepare.add_argument("--workers", type=int, default=0, help="threads (0: one a core)")

    evaluate = add("evaluate", _evaluate, "measure a run's accuracy on its validation images")
    evaluate.add_argument("--workdir", required=True, help="directory of the run")
    evaluate.add_argument("--checkpoint", default="last", help="last (the default), best, or a step")
    evaluate.add_argument("--ema", action="store_true", help="use the weights' moving average")
    evaluate.add_argument("--data_dir", default="", help="where the images are, if not where the run was trained from")

    models = add("models", _models, "list models with their parameters and multiply-adds an image")
    models.add_argument("pattern", nargs="?", default="*", help="shell pattern of names")
    models.add_argument("--image_size", type=int, default=224, help="side of the images in pixels (224)")
    models.add_argument("--num_classes", type=int, default=100, help="classes of the head (100)")
    return parser
