"""The words of `stce evaluate`."""

from stce_jax.commands import common

HELP = "measure a run's accuracy on its validation images"
EXAMPLES = """
  stce evaluate --workdir=runs/digits
  stce evaluate --workdir=runs/digits --checkpoint=best"""


def add_arguments(verb):
    common.add_run(verb)
    common.add_data_dir(verb, "where the images are, if not where the run was trained from")


def run(arguments, _):
    from stce_jax.engine import processes
    from stce_jax.evaluate import evaluate

    processes.start()
    with processes.together():
        result = evaluate(**common.of_run(arguments), data_dir=arguments.data_dir)
    first = processes.is_main()
    processes.leave()
    if not first:
        return
    print(
        f"step {result['step']}  epoch {result['epoch']:.2f}  {result['images']} images  loss {result['loss']:.4f}  "
        f"top-1 {100 * result['top1']:.2f}%  top-5 {100 * result['top5']:.2f}%"
    )
