"""The table of faults names tests that exist, once each fault, in every area."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AREAS = {
    "Resume and kill",
    "Checkpoints",
    "Numerics",
    "Data",
    "CLI and config",
    "Hardware and distribution",
}
CODES = {"0", "1", "2", "3", "4", "5", "75", "130", "137", "141", "143", "continues", "then continues", "–"}
TEST = re.compile(r"`(tests/(?:\w+/)*test_\w+\.py)::((?:\w+::)?test_\w+)(\[[^]]+\])?`")


def rows():
    """(area, [what is done, what must happen, exit codes, test]) of each row of the table."""
    found, area = [], ""
    for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            area = line.removeprefix("## ")
        elif line.startswith("|") and not line.startswith(("| what is done |", "|---")):
            found.append((area, [cell.strip() for cell in line.strip("|").split("|")]))
    return found


@functools.cache
def named_in(path):
    """{name: whether it takes parameters} of a file's tests; of a class's tests the name is "Class::name"."""
    found = {}
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    scopes = [("", tree), *((f"{node.name}::", node) for node in tree.body if isinstance(node, ast.ClassDef))]
    for prefix, scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                decorators = " ".join(map(ast.unparse, node.decorator_list))
                found[prefix + node.name] = ".parametrize(" in decorators
    return found


@pytest.mark.parametrize("row", [row for _, row in rows()], ids=lambda row: row[0][:60])
def test_a_row_is_whole_and_names_a_test_that_exists(row):
    assert len(row) == 4 and all(row), f"a row has four columns: {row}"
    *_, codes, test = row
    assert set(codes.split(", ")) <= CODES, f"unknown exit codes {codes!r}"
    named = TEST.fullmatch(test)
    assert named, f"{test} names no test"
    path, name, parameter = named.groups()
    assert (ROOT / path).exists(), f"there is no {path}"
    assert name in named_in(path), f"there is no test {name} in {path}"
    assert not parameter or named_in(path)[name], f"{name} has no parameters, {parameter} is named"


def test_every_area_has_rows_and_there_are_fifty():
    areas = [area for area, _ in rows()]
    assert set(areas) == AREAS, "an area has no rows, or is not known"
    assert len(areas) >= 50, f"{len(areas)} rows"


def test_no_row_is_repeated():
    done = [row[0] for _, row in rows()]
    assert len(done) == len(set(done)), {text for text in done if done.count(text) > 1}
    outcomes = [(row[1], row[3]) for _, row in rows()]
    repeated = {pair for pair in outcomes if outcomes.count(pair) > 1}
    assert not repeated, f"one test is named twice for one outcome: {repeated}"
