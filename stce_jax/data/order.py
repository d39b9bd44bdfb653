"""Which training image stands at each position of the stream: a pure function of (seed, salt, position).

Shape letters: n images, K classes.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from stce_jax.errors import check_choice

SAMPLINGS = ("", "balanced", "sqrt")
_ROUNDS = 8  # that are kept: threads are in several at a time
_DECKS = 2048  # the same; with more classes than these, decks are drawn again and again
Order = Callable[[int], int]  # position -> index of an image


def make_order(
    sampling: str, labels: Int[np.ndarray, "n"] | None, *, count: int, seed: int, salt: int, repeats: int
) -> Order:
    """The order of the training images.

    An epoch is always `count` positions. With `repeats` each image that is drawn stands at so many in a row (repeated
    augmentation, Hoffer et al. 2020, as DeiT draws it), so an epoch has count / repeats draws.

    "" draws each image once an epoch. The others draw classes in rounds, each in an order of its own: "balanced" each
    class once a round, "sqrt" as often as makes its share that of the square root of its images, a round being about as
    many draws as there are images. A class deals out its images as from a shuffled deck: each once, then shuffled anew.

    Args:
      sampling: one of SAMPLINGS.
      labels: 0..K - 1 of the images, each class with one or more; None where `sampling` is "".
      count: n.
      seed: of every draw.
      salt: another one when a run is rolled back, so that other images follow.
      repeats: >= 1.

    Returns:
      A function that can be pickled.
    """
    draws: dict[str, int] = {"count": count, "seed": seed, "salt": salt, "repeats": repeats}
    if not sampling:
        return functools.partial(image_index, **draws)
    assert labels is not None
    counts = np.bincount(labels)
    quotas = np.ones(len(counts), np.int64)
    if sampling == "sqrt":
        shares = np.sqrt(counts) / np.sqrt(counts).sum()
        quotas = np.maximum(1, np.rint(count * shares)).astype(np.int64)
    return ClassOrder(labels, quotas, **draws)


def image_index(position: int, *, count: int, seed: int, salt: int, repeats: int) -> int:
    """Which of `count` images stands at a position of a stream that has each once an epoch, see `make_order`."""
    epoch, within = divmod(position, count)
    return int(_epoch(seed, salt, epoch, count)[within // repeats])


class ClassOrder:
    """The order that draws class k `quotas[k]` times in every round, see `make_order`."""

    def __init__(
        self,
        labels: Int[np.ndarray, "n"],
        quotas: Int[np.ndarray, "K"],
        *,
        count: int,
        seed: int,
        salt: int,
        repeats: int,
    ) -> None:
        self._count, self._repeats, self._draws = count, repeats, (seed, salt)
        ends = np.cumsum(np.bincount(labels, minlength=len(quotas)))
        self._images = np.split(np.argsort(labels, kind="stable"), ends[:-1])
        self._quotas, self._slots = quotas, np.repeat(np.arange(len(quotas)), quotas)
        self._numbers = np.arange(len(self._slots)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
        self._rounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, position: int) -> int:
        epoch, within = divmod(position, self._count)
        draw = epoch * -(-self._count // self._repeats) + within // self._repeats
        turn, place = divmod(draw, len(self._slots))
        labels, numbers = self._round(turn)
        label = int(labels[place])
        own = self._images[label]
        deck, place = divmod(turn * int(self._quotas[label]) + int(numbers[place]), len(own))
        return int(own[_deck(*self._draws, label, deck, len(own))[place]])

    def _round(self, turn: int) -> tuple[Int[np.ndarray, "slots"], Int[np.ndarray, "slots"]]:
        """(the class of each draw of a round, how often that class was drawn before in the round)."""
        found = self._rounds.get(turn)
        if found is None:
            labels = self._slots[_draw(*self._draws, 2, 0, turn, len(self._slots))]
            numbers = np.empty_like(labels)
            numbers[np.argsort(labels, kind="stable")] = self._numbers
            if len(self._rounds) >= _ROUNDS:
                self._rounds.clear()
            self._rounds[turn] = found = labels, numbers
        return found


@functools.lru_cache(maxsize=2)  # where epochs meet, some threads are still in the old one
def _epoch(seed: int, salt: int, epoch: int, count: int) -> Int[np.ndarray, "count"]:
    return _draw(seed, salt, 1, 0, epoch, count)


@functools.lru_cache(maxsize=_DECKS)
def _deck(seed: int, salt: int, label: int, number: int, count: int) -> Int[np.ndarray, "count"]:
    return _draw(seed, salt, 3, label, number, count)


def _draw(seed: int, salt: int, stream: int, label: int, number: int, count: int) -> Int[np.ndarray, "count"]:
    """A permutation. The crops have the same keys and the counter's last word 0."""
    counter = (0, label, salt, stream)
    return np.random.Generator(np.random.Philox(key=(seed, number), counter=counter)).permutation(count)


def check_options(*, sampling: str) -> None:
    """Raises ConfigError if images cannot be drawn so."""
    check_choice("config.sampling", sampling, SAMPLINGS)
