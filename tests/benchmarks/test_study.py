"""The script that keeps the study's results and draws its page, and the one that makes class folders small."""

import sys
import zipfile

import numpy as np
import pytest
import shrink_folder
import study
from image_sources import make_images, tree
from study_results import drawn_hits, keep, keep_images

from stce_jax.data.catalog import open_dataset
from stce_jax.data.decode import decode_image
from stce_jax.errors import ConfigError
from stce_jax.reproduce.cells import load_rows

ROWS = {row.run: row for row in load_rows("clustering", "smoke")}
PAGE = "before\n<!-- answers -->\n<!-- end of answers -->\n<!-- study -->\nold\n<!-- end of study -->\nbehind\n"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words)])
    monkeypatch.setattr(study.jax_settings, "use_cpus_only", lambda: None)
    study.main()


@pytest.mark.slow
def test_somebodys_results_are_added_and_the_page_is_drawn_again(tmp_path, monkeypatch, capsys):
    theirs, page = tmp_path / "theirs", tmp_path / "page.md"
    for run_name, own in drawn_hits(np.random.default_rng(0), {"stce": 0.7, "patch": 0.5}, 3, 200).items():
        for seed, hits in enumerate(own):
            keep(theirs, ROWS[run_name], seed, hits)
    keep_images(theirs, 200)
    page.write_text(PAGE)
    words = ("--merge", theirs, "--results", tmp_path / "kept", "--document", page)
    run(monkeypatch, *words)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("behind\n") and "\nold\n" not in text
    assert "python benchmarks/study.py" in text and "### Scale `smoke`" in text and "#### Hypotheses" in text
    answers, _, results = text.partition("<!-- end of answers -->")
    assert "- Super tokens are better than patches: yes" in answers and "6 of 15 are finished" in answers
    assert "Super tokens are better than patches: yes" not in results
    assert "](study/smoke/differences.png)" in text and str(tmp_path) not in text
    assert "smoke: 6 runs added, 0 were there" in capsys.readouterr().out
    run(monkeypatch, *words)
    assert page.read_text() == text and "0 runs added, 6 were there" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--merge", "nowhere"), ("--collect", "nowhere")])
def test_what_is_no_folder_of_results_ends_in_one_line(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, *words, "--results", tmp_path / "kept", "--no_document")
    assert exit.value.code in (2, 3) and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("output", ["small.zip", "small"])
def test_images_are_made_small_and_stay_class_folders(tmp_path, output):
    tree(tmp_path / "large", make_images())
    count, total = shrink_folder.shrink_folder(tmp_path / "large", tmp_path / output, side=16, quality=50)
    folder = tmp_path / output
    if output.endswith(".zip"):
        first = folder.read_bytes()
        again = tmp_path / "again.zip"
        shrink_folder.shrink_folder(tmp_path / "large", again, side=16, quality=50)
        assert again.read_bytes() == first, "the same images give other bytes"
        folder = tmp_path / "unpacked"
        zipfile.ZipFile(tmp_path / output).extractall(folder)
    large, small = (open_dataset("folder", str(each)) for each in (tmp_path / "large", folder))
    assert small.class_ids == large.class_ids and count == len(large.train) + len(large.val) and total > 0
    for split in ("train", "val"):
        before, after = getattr(large, split), getattr(small, split)
        assert [after[place]["label"] for place in range(len(after))] == [
            before[place]["label"] for place in range(len(before))
        ]
        shapes = [decode_image(after[place]["image"], "").shape for place in range(len(after))]
        assert all(min(shape[:2]) == 16 for shape in shapes), shapes


def test_a_part_of_the_training_images_is_held_out_and_no_test_image_is_read(tmp_path):
    images = make_images(train=10, val=2)
    tree(tmp_path / "large", images)
    for path in (tmp_path / "large" / "val").rglob("*.*"):
        path.write_bytes(b"no image")
    shrink_folder.shrink_folder(tmp_path / "large", tmp_path / "held", side=16, quality=90, held_out=0.2)
    found = open_dataset("folder", str(tmp_path / "held"))
    classes = len(found.class_ids)
    assert len(found.train) == 8 * classes and len(found.val) == 2 * classes
    names = [
        {source.name(place).rsplit("/", 1)[1] for place in range(len(source))} for source in (found.train, found.val)
    ]
    assert not names[0] & names[1]


@pytest.mark.parametrize("options", [{"side": 4}, {"quality": 100}, {"held_out": 1.0}])
def test_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(ConfigError):
        shrink_folder.shrink_folder(tmp_path, tmp_path / "out", **({"side": 16, "quality": 50} | options))
    assert not list(tmp_path.iterdir())
