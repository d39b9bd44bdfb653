"""Every script starts: what it imports of the package is there."""

import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))
ABSENT = {"torch", "tensorflow", "timm"}  # in environments of their own


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_can_be_imported(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name in ABSENT, f"{name} imports {error.name}, which is not there"
        pytest.skip(f"needs {error.name}")
