"""Collecting less often still collects: cycles that a process makes are freed before they fill its memory."""

import gc
import weakref

import pytest

from stce_jax.platform import garbage


@pytest.fixture
def thresholds():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


class Cycle:
    def __init__(self):
        self.me = self


def test_cycles_are_freed_though_rarely(thresholds):
    garbage.collect_rarely()
    assert gc.get_threshold()[0] > 10 * 2000, "no rarer than Python's own"
    gc.collect()
    first = weakref.ref(Cycle())
    kept = []
    while first() is not None and len(kept) < 2 * garbage.THRESHOLDS[0]:
        kept.append([])
    assert first() is None, f"not freed after {len(kept)} objects"
    assert gc.isenabled()
