"""The words of `stce models`."""

HELP = "list models with their parameters and multiply-adds an image"
EXAMPLES = """
  stce models
  stce models 'vit_s_*' --image_size=384"""


def add_arguments(verb):
    verb.add_argument("pattern", nargs="?", default="*", help="shell pattern of names")
    verb.add_argument("--image_size", type=int, default=224, help="side of the images in pixels (224)")
    verb.add_argument("--num_classes", type=int, default=100, help="classes of the head (100)")


def run(arguments, _):
    from stce_jax.verbs.summary import summarize

    rows = summarize(arguments.pattern, image_size=arguments.image_size, num_classes=arguments.num_classes)
    print(f"{'model':<18}{'parameters':>13}{'embedding':>12}{'multiply-adds':>16}")
    for row in rows:
        print(f"{row['name']:<18}{row['parameters']:>13,}{row['embedding_parameters']:>12,}{row['multiply_adds']:>16,}")
