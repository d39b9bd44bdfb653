"""What a release says of itself: one version everywhere, a citation that tools can read, a workflow for each Python."""

import re
import tomllib
from pathlib import Path

import yaml

import stce_jax

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_place_and_is_repeated_right():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "stce_jax.__version__"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == stce_jax.__version__
    assert f"version = {{{stce_jax.__version__}}}" in (ROOT / "README.md").read_text()


def test_the_citation_names_the_paper_and_this_implementation():
    """The keys that the Citation File Format requires, and the paper as the README cites it."""
    citation, readme = yaml.safe_load((ROOT / "CITATION.cff").read_text()), (ROOT / "README.md").read_text()
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["title"].startswith(
        "stce_jax"
    )
    (paper,) = citation["references"]
    assert paper["type"] == "article" and len(paper["authors"]) == 3
    for text in (paper["doi"], str(paper["year"]), f"{paper['start']}--{paper['end']}", paper["journal"]):
        assert text in readme


def test_the_workflow_runs_the_tests_with_each_python_that_the_package_takes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    (job,) = workflow["jobs"].values()
    pythons = {row["python"] for row in job["strategy"]["matrix"]["include"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, last = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups())
    assert pythons == {f"3.{minor}" for minor in range(first, last)}
    assert any("bash .ci/run" in step.get("run", "") for step in job["steps"])
    assert "LOCKED" in (ROOT / ".ci" / "run").read_text()
