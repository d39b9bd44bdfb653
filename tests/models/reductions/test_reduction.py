"""What token reductions share."""

import pytest

from stce_jax.errors import ConfigError
from stce_jax.models.reductions.reduction import kept_counts


def test_several_keep_rates_are_one_a_stage():
    """A module asks for the stages up to its own."""
    assert [kept_counts((0.75, 0.5, 0.25), 16, stages) for stages in (1, 2, 3)] == [[12], [12, 8], [12, 8, 4]]
    assert kept_counts((0.5,), 16, 3) == kept_counts(0.5, 16, 3) == [8, 4, 2]
    with pytest.raises(ConfigError, match="keep_rate lists 2 rates for 3 blocks"):
        kept_counts((0.5, 0.25), 16, 3)
