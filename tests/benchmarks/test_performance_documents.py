"""What the benchmarks write into docs/performance.md, and how."""

import re
import sys

import documents
import pytest


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- one -->\nold\n<!-- end of one -->\nbetween\n<!-- two -->\n<!-- end of two -->\n")
    return path


def test_a_section_is_replaced_and_the_others_stay(page):
    for _ in range(2):  # a second time it replaces what the first one wrote
        documents.write_section("one", r"| \1 |", "python x.py", page)
    expected = "before\n<!-- one -->\n```\npython x.py\n```\n\n| \\1 |\n<!-- end of one -->\nbetween\n"
    assert page.read_text() == expected + "<!-- two -->\n<!-- end of two -->\n"


def test_a_section_that_is_not_there_is_refused(page):
    before = page.read_bytes()
    with pytest.raises(SystemExit, match="no section between <!-- three -->"):
        documents.write_section("three", "text", path=page)
    assert page.read_bytes() == before


@pytest.mark.parametrize("words", [["--json", "here/a.json"], ["--json=here/a.json"], []])
def test_the_command_is_what_a_user_would_type(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["/elsewhere/benchmarks/growth.py", "--calls", "3", *words, "--write"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    monkeypatch.setenv("XLA_FLAGS", "--one=1 --two=2")
    command = documents.command()
    assert command.startswith("GLIBC_TUNABLES=glibc.malloc.hugetlb=1 XLA_FLAGS='--one=1 --two=2' ")
    assert command.endswith("python benchmarks/growth.py --calls 3 --write")


def test_every_section_of_the_page_says_its_command():
    text = (documents.DOCS / "performance.md").read_text()
    sections = re.findall(r"<!-- (?!end of )(.+?) -->\n(.*?)<!-- end of \1 -->", text, re.DOTALL)
    assert {name for name, _ in sections} >= {"roofline", "roofline on paper", "growth", "gpu program"}
    for name, section in sections:
        assert re.match(r"```\n.*python benchmarks/\w+\.py.*\n```\n", section), f"{name} does not say how it was made"
