"""README, docs/ and the other pages: length, links, command lines, and the files that they name.

Command lines of `stce` are parsed, with every option and key; of other programs the files, options of scripts and
extras that they name are looked for. Python is run, see tests/test_snippets.py.
"""

import functools
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from stce_jax.cli import make_parser
from stce_jax.workdir.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MOST_WORDS = 2000
FENCE = re.compile(r"^ *```(.*?)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^][]*\]\(([^)\s]+)\)")
FOLDERS = "stce_jax|configs|benchmarks|launch|tests|docs"


def name_of(path):
    return str(path.relative_to(ROOT))


@functools.cache
def prose(path):
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


@functools.cache
def anchors(path):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(path):
    """The lines of a page's blocks of shell commands, continued lines joined."""
    for language, text in FENCE.findall(path.read_text(encoding="utf-8")):
        if language.strip() in ("", "bash", "sh"):
            yield from (line.strip() for line in text.replace("\\\n", " ").splitlines())


def commands(path):
    """(command line, whether it is complete) of each `stce` in a page: in a sentence, words may be left out."""
    yield from ((line, True) for line in blocks(path) if re.match(r"stce [a-z]", line))
    yield from ((span, False) for span in SPAN.findall(prose(path)) if re.match(r"stce [a-z]", span))


COMMANDS = [(name_of(path), *found) for path in PAGES for found in commands(path)]


def check_overrides(config, words):
    """Raises if one of the words sets a key that is not there, or to a value of the wrong type."""
    assert all(word.startswith("--config.") for word in words), f"no option is called {words}"
    concrete = [word for word in words if not re.search(r"[A-Z]", word.partition("=")[0])]  # --config.KEY=VALUE
    load_config("digits" if not config or config.endswith(".py") or config.isupper() else config, concrete)


def check_command(line, complete):
    """Raises if the command line has a verb, an option or a key that is not there, or lacks an argument."""
    words = itertools.takewhile(lambda word: word not in (">", "|", "..."), shlex.split(line, comments=True))
    verb, *rest = list(words)[1:]
    parser = make_parser()
    (verbs,) = (action for action in parser._actions if getattr(action, "choices", None))
    assert verb in verbs.choices, f"there is no verb {verb}"
    if complete:
        arguments, overrides = parser.parse_known_args([verb, *rest])
        config = getattr(arguments, "config", "")
    else:
        options = {option for action in verbs.choices[verb]._actions for option in action.option_strings}
        overrides = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options]
        config = next((word.partition("=")[2] for word in rest if word.startswith("--config=")), "")
    assert not overrides or verbs.choices[verb].get_default("takes_overrides"), f"{verb} takes no {overrides}"
    check_overrides(config, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("page, line, complete", COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_command_lines_are_right(page, line, complete):
    try:
        check_command(line, complete)
    except SystemExit:
        pytest.fail(f"{page}: `{line}` does not parse")


def test_a_wrong_command_line_would_be_found():
    check_command("stce train --config=digits --workdir=W --config.seed=1  # comment", True)
    for line, complete in [("stce trian", False), ("stce evaluate --workdir=W --chekpoint=best", True)]:
        with pytest.raises(AssertionError):
            check_command(line, complete)
    with pytest.raises(AssertionError, match="takes no"):
        check_command("stce evaluate --seed=1", False)
    with pytest.raises(Exception, match="did you mean 'seed'"):
        check_command("stce train --config=digits --config.sed=1", False)


def test_keys_named_alone_exist():
    """`--config.KEY=VALUE` outside of a command line, unless the page's own code adds the section that has the key."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for span in SPAN.findall(prose(path)):
            words = [word for word in span.split() if re.match(r"--config\.[\w.]+=", word)]
            sections = {word: re.match(r"--([\w.]+)\.", word)[1] for word in words}
            words = [word for word in words if sections[word] == "config" or f"{sections[word]} = " not in text]
            if words:
                check_overrides("", words)


def test_the_readme_is_short():
    words = len((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert words <= MOST_WORDS, f"README.md has {words} words, at most {MOST_WORDS} are read: move some to docs/"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    for target in LINK.findall(SPAN.sub("", prose(path))):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), f"{name_of(path)} links to {target}: there is no such file"
        assert not anchor or anchor in anchors(found), f"{name_of(path)} links to {target}: there is no such heading"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_are_named_exist(path):
    spans = [span for span in SPAN.findall(prose(path)) if re.fullmatch(rf"(?:{FOLDERS})/[\w./]*", span)]
    for span in spans:
        assert "NAME" in span or (ROOT / span).exists(), f"{name_of(path)} names {span}: there is no such file"
    for line in [*blocks(path), *SPAN.findall(prose(path))]:
        for script in re.findall(r"(?:^| )(?:python|bash|sbatch) ((?:benchmarks|launch)/[\w.]+)", line):
            text = (ROOT / script).read_text(encoding="utf-8")
            if script.startswith("benchmarks/"):
                for option in re.findall(r" (--[a-z_-]+)", line.partition(script)[2]):
                    assert f'"{option}"' in text, f"{name_of(path)}: {script} has no option {option}"


@functools.cache
def extras():
    with open(ROOT / "pyproject.toml", "rb") as file:
        return set(tomllib.load(file)["project"]["optional-dependencies"])


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_other_commands_name_what_there_is(path):
    """Extras that pip installs, tests that pytest runs, modules that Python runs."""
    for line in [*blocks(path), *SPAN.findall(prose(path))]:
        for extra in re.findall(r"pip install .*\[([\w,]+)\]", line):
            assert set(extra.split(",")) <= extras(), f"{name_of(path)}: `{line}`: there is no extra {extra}"
        for file in re.findall(r"(?<= )tests/[\w./]+", line) if "pytest " in line or "launch/test.sh" in line else ():
            assert (ROOT / file).exists(), f"{name_of(path)}: `{line}`: there is no {file}"
        for module in re.findall(r"python (?:-P )?-m (stce_jax[\w.]*)", line):
            file = ROOT / module.replace(".", "/")
            there = file.with_suffix(".py").exists() or (file / "__main__.py").exists()
            assert there, f"{name_of(path)}: `{line}`: there is no {module}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_packages_come_from_where_the_user_has_them(path):
    found = re.search(r"index-url|find-links|pypi\.|/simple\b", path.read_text(encoding="utf-8"))
    assert not found, f"{name_of(path)} names a place of packages: {found.group()}"
