"""A config's images as batches on the host, for training loops of one's own.

Shape letters: B images of a batch, S side of an image in pixels.
"""

from ml_collections import config_dict

from stce_jax.data import loader
from stce_jax.data.dataset import SPLITS, Dataset
from stce_jax.data.feeder import Feeder
from stce_jax.errors import ConfigError, check_whole, shown
from stce_jax.training import assemble as runs
from stce_jax.training.mesh import make_mesh, round_up


def train_batches(config: config_dict.ConfigDict, dataset: Dataset, *, step: int = 0) -> Feeder:
    """The training batches of a config, without end, read ahead in the background; to be closed, as by `with`.

    The order of images and the crops follow from the config's seed and the step alone, as in `stce train`. Images are
    `config.image_size` pixels wide.

    Args:
      config: of `load_config`; its batch size, image size, seed, crops and options of loading count.
      dataset: of `open_dataset`.
      step: the batches that came before, of as many images, >= 0.

    Returns:
      An iterator over {"image": uint8 [B, S, S, 3], "label": int32 [B]}, cropped, neither augmented nor normalised: see
      `build_augment` and `augment.normalize`. Of several processes each has its share of every batch.

    Raises:
      ConfigError: the config cannot work.
      DataError: from the iterator: an image cannot be read, or none comes in `config.loader_timeout` seconds.

    Example:
      >>> with train_batches(config, dataset) as batches:
      ...     for batch in itertools.islice(batches, 100):
      ...         state = step(state, batch["image"], batch["label"])
    """
    runs.check_options(config)
    check_whole("step", step, 0, runs.MOST_STEPS)
    return runs.train_batches(config, dataset, step * config.batch_size)


def eval_batches(config: config_dict.ConfigDict, dataset: Dataset, split: str = "val") -> Feeder:
    """One pass over a split as evaluation sees it, every image once, in order; to be closed, as by `with`.

    Args:
      config, dataset: see `train_batches`.
      split: "val" or "train".

    Returns:
      An iterator over {"image": uint8 [B, S, S, 3], "label": int32 [B], "weight": float32 [B]}. B is
      `config.eval_batch_size`, rounded up to what the devices share evenly. The last batch is filled up with black
      images of weight 0; all others have weight 1.

    Raises:
      ConfigError: the config cannot work, or there is no such split.
      DataError: from the iterator: an image cannot be read.
    """
    runs.check_options(config)
    if split not in SPLITS or getattr(dataset, split) is None:
        raise ConfigError(f"the dataset has no split {shown(split)}; the splits are {', '.join(SPLITS)}")
    return loader.eval_batches(
        runs.eval_views(config, dataset, split),
        batch_size=round_up(config.eval_batch_size, make_mesh()),
        threads=runs.loader_threads(config),
        timeout=config.loader_timeout,
    )
