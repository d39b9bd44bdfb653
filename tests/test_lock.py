"""requirements.lock has one version of every requirement for each Python, which the requirement allows."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKED_EXTRAS = re.findall(r"--extra (\S+)", LOCK.splitlines()[1])
UNLOCKED = {"onnx", "interop", "docs", "wandb", "trackio", "mlflow", "loggers"}  # environments of their own; in dev


def pins(version):
    """{package: its requirement} of a Python on Linux."""
    environment = default_environment() | {"python_full_version": f"{version}.0", "python_version": version}
    environment |= {"sys_platform": "linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython"}
    lines = [Requirement(line) for line in LOCK.splitlines() if line and not line.startswith("#")]
    chosen = [line for line in lines if line.marker is None or line.marker.evaluate(environment)]
    found = {canonicalize_name(line.name): line for line in chosen}
    assert len(found) == len(chosen), "a package has two versions"
    return found


def wanted():
    """The requirements of the package and of the extras that are locked."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    lines = [*filter(None, lines), *(line for extra in LOCKED_EXTRAS for line in EXTRAS[extra])]
    return [line for line in map(Requirement, lines) if line.name != PROJECT["name"]]


def test_every_extra_is_locked_or_has_a_reason():
    assert set(LOCKED_EXTRAS) | UNLOCKED == EXTRAS.keys() and not set(LOCKED_EXTRAS) & UNLOCKED


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_requirement_has_a_version_that_it_allows(version):
    """If this fails, make the file again by the command in its second line."""
    found = pins(version)
    for requirement in wanted():
        pin = found[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert exact.operator == "==", pin
        assert requirement.specifier.contains(exact.version, prereleases=True), f"{requirement} is locked as {pin}"


def test_it_names_no_place_to_take_packages_from():
    assert not re.search(r"://|^-", LOCK, re.MULTILINE)
