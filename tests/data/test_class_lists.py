"""The shipped lists of classes: different data sets; files of ids; ids by words."""

import itertools
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from stce_jax.data import class_lists
from stce_jax.errors import ConfigError

# Classes that two lists share, counted from the lists as their authors published them.
SHARED = {("kaggle", "cmc"): 8, ("kaggle", "podnet"): 69, ("cmc", "podnet"): 8}


@pytest.mark.parametrize("name", class_lists.LISTS)
def test_lists_are_a_hundred_sorted_classes_of_the_thousand(name):
    ids = class_lists.load_class_ids(name)
    assert len(ids) == len(set(ids)) == 100 and list(ids) == sorted(ids)
    assert set(ids) <= set(class_lists.load_class_ids("all"))


@pytest.mark.parametrize("pair", list(itertools.combinations(class_lists.LISTS, 2)))
def test_lists_are_different_data_sets(pair):
    first, second = map(class_lists.load_class_ids, pair)
    assert len(set(first) & set(second)) == SHARED[pair]
    assert class_lists.list_hash(first) != class_lists.list_hash(second)


def test_podnets_are_the_first_hundred():
    assert class_lists.load_class_ids("podnet") == class_lists.load_class_ids("all")[:100]


def test_known_members():
    """One class that only one of the lists has, each."""
    kaggle, cmc, podnet = (set(class_lists.load_class_ids(name)) for name in class_lists.LISTS)
    assert "n01968897" in kaggle - cmc - podnet  # chambered nautilus
    assert "n02869837" in cmc - kaggle - podnet  # bonnet
    assert "n01443537" in podnet - cmc  # goldfish


def test_the_thousand_have_names():
    ids = class_lists.load_class_ids("all")
    assert len(ids) == 1000 and list(ids) == sorted(ids)
    names = dict(zip(ids, class_lists.class_names(ids), strict=True))
    assert names["n01440764"] == "tench, Tinca tinca" and names["n15075141"].startswith("toilet tissue")
    assert names["n02012849"] == names["n03126707"] == "crane", "the bird and the machine"
    assert class_lists.class_names(["n01440764", "cat"]) == ("tench, Tinca tinca", "cat")


def test_the_hash_is_of_the_content_whatever_the_order():
    assert class_lists.list_hash(["b", "a"]) == class_lists.list_hash(["a", "b"]) != class_lists.list_hash(["a", "c"])
    # Part of the names of directories on users' disks: must never change.
    assert class_lists.list_hash(class_lists.load_class_ids("kaggle")) == "82b5291a"
    assert class_lists.list_hash(class_lists.load_class_ids("cmc")) == "d61d354b"
    assert class_lists.list_hash(class_lists.load_class_ids("podnet")) == "e685f52f"
    assert class_lists.list_hash(class_lists.load_class_ids("all")) == "385e0240"


def test_a_file_of_ids(tmp_path):
    path = tmp_path / "my list.txt"
    for start in ("# mine\n", "\ufeff"):  # Windows puts the latter before the text
        path.write_text(f"{start}n02012849 crane\n\n  n01440764\ttench\n", encoding="utf-8")
        assert class_lists.load_class_ids(str(path)) == ("n01440764", "n02012849")
    assert class_lists.list_name(str(path)) == "my_list" and class_lists.list_name("cmc") == "cmc"


@pytest.mark.parametrize(
    "content, named",
    [
        (b"n0144\n", "'n0144' is not a WordNet id"),
        (b"n01440764\nn01440764\n", "twice"),
        (b"", "no class"),
        (b"\xff", "text"),
    ],
)
def test_files_that_are_no_lists_are_refused(tmp_path, content, named):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named) as caught:
        class_lists.load_class_ids(str(path))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match="kaggle, cmc, podnet"):
        class_lists.load_class_ids("imagenette")
    with pytest.raises(ConfigError, match="~nosuchuser"):
        class_lists.load_class_ids("~nosuchuser/list.txt")


@pytest.mark.parametrize("text, name", [("a b/c", "a_b_c"), ("..", "images"), ("été", "t"), ("x.y-z", "x.y_z")])
def test_names_of_directories_are_plain(text, name):
    assert class_lists.safe_name(text) == name


def test_ids_by_words():
    ids = class_lists.load_class_ids("all")
    names = list(class_lists.class_names(ids))
    assert class_lists.ids_of_words(names) == list(ids), "the two cranes are told apart by their places"
    assert class_lists.ids_of_words(["bonnet, poke bonnet", "tench"]) == ["n02869837", "n01440764"]
    assert class_lists.ids_of_words(["Tinca tinca", "flamingo"]) == ["n01440764", "n02007558"]


def test_words_that_are_unknown_or_could_be_several_classes_are_not_guessed():
    assert class_lists.ids_of_words(["tench", "unicorn"]) is None
    assert class_lists.ids_of_words(["crane"]) is None
    assert class_lists.ids_of_words(["flamingo", "tench", "crane"]) is None, "not in the order of the ids"
    assert class_lists.ids_of_words(["tench", "tench"]) is None
    # Between n02007558 and n02018207 only the bird fits.
    assert class_lists.ids_of_words(["flamingo", "crane", "American coot"])[1] == "n02012849"


def test_against_the_lists_as_published(test_data):
    """The words and the CMC list as they lie beside real images."""
    with zipfile.ZipFile(test_data / "data" / "imagenet_samples.zip") as archive:
        words = dict(line.split("\t") for line in archive.read("imagenet1000_words.txt").decode().splitlines())
        cmc = archive.read("imagenet100_wnids.txt").decode().split()
    ids = class_lists.load_class_ids("all")
    assert dict(zip(ids, class_lists.class_names(ids), strict=True)) == words
    assert class_lists.load_class_ids("cmc") == tuple(sorted(cmc))


def test_lists_are_part_of_the_package():
    """They must be where an installed package looks for them, and be named in its build."""
    folder = Path(class_lists.__file__).parent / "classes"
    shipped = {f"imagenet100_{name}.txt" for name in class_lists.LISTS} | {"imagenet1000.txt"}
    assert {path.name for path in folder.iterdir()} == shipped
    build = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert build["package-data"]["stce_jax.data.classes"] == ["*.txt"]


@pytest.mark.slow
def test_lists_need_nothing_heavy():
    code = "import sys; from stce_jax.data import class_lists; class_lists.load_class_ids('cmc'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "numpy", "tensorflow_datasets"} & set(loaded)
