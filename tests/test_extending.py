"""docs/extending.md: its files, copied from the page, train, and their runs open with --config=FILE alone."""

import re
from pathlib import Path

import pytest

from stce_jax.cli import main
from stce_jax.models.bodies import BODIES
from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.reductions import REDUCTIONS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))
TABLES = {"embedding": EMBEDDINGS, "reduction": REDUCTIONS, "body": BODIES}
NAMES = {"toy_embedding": "mean_color", "toy_reduction": "every_second", "toy_body": "mean"}
SMALL = ("--config.image_size=16", "--config.batch_size=64", "--config.epochs=1", "--config.optimizer.warmup_epochs=0")


@pytest.fixture(autouse=True)
def tables_stay(monkeypatch):
    """Whatever a file registers is gone after the test."""
    for table in TABLES.values():
        before = dict(table)
        yield_back = table
        monkeypatch.setattr("builtins.print", print)
        del yield_back, before
    yield


def stce(capsys, *words):
    """(exit code, standard output, standard error) of a command in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    output = capsys.readouterr()
    return end.value.code, output.out, output.err


def test_the_page_has_a_file_for_each_part():
    assert set(FILES) == set(NAMES)
