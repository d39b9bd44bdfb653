"""What is kept of the study's runs: small, read back to the bit, merged without duplicates, or refused."""

import base64
import json

import numpy as np
import pytest
from study_results import drawn_hits, keep, keep_images, made

from stce_jax.errors import DataError
from stce_jax.reproduce import kept
from stce_jax.reproduce.cells import load_rows
from stce_jax.reproduce.kept_folders import IMAGES, merge, read_folder, read_images, to_results

ROWS = {row.run: row for row in load_rows("clustering", "smoke")}
HITS = np.random.default_rng(0).random(101) < 0.6


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1600])
def test_hits_are_a_bit_each(count):
    hits = np.random.default_rng(count).random(count) < 0.5
    text = kept.pack(hits)
    np.testing.assert_array_equal(kept.unpack(text, count), hits)
    assert len(base64.b64decode(text)) == -(-count // 8)
    with pytest.raises(ValueError, match=f"bytes for {count + 8} images"):
        kept.unpack(text, count + 8)


def test_a_run_is_read_as_it_was_written(tmp_path):
    path = keep(tmp_path, ROWS["stce"], 3, HITS, clusters=True)
    assert path.name == "stce_seed3.json"
    found = kept.read_run(path, ROWS)
    np.testing.assert_array_equal(found["hits"], HITS)
    np.testing.assert_allclose(found["clusters"]["own"], 0.6, atol=1 / 255)
    (result,) = (each for each in to_results([found], list(ROWS.values()), [0, 3]) if each.seeds)
    assert result.seeds == [3] and result.top1 == [HITS.mean()] and result.unfinished == {0: "not finished"}
    assert result.curves[0][-1] == {"split": "eval", "epoch": 2.0, "loss": 1.0, "top1": 0.6, "affinity_entropy": 1.9}


def test_the_largest_run_that_is_planned_is_far_below_the_limit(tmp_path):
    """ImageNet's 50,000 test images, 300 epochs evaluated each, a training line every 50 steps."""
    lines = [
        {"split": split, "epoch": 300 * place / count, "loss": 2.3456789, "top1": 0.123456789, "affinity_entropy": 1.9}
        for split, count in (("train", 6000), ("eval", 300))
        for place in range(1, count + 1)
    ]
    curves = kept.curves_of(lines)
    assert len(curves["train"]["epoch"]) == 200 and curves["train"]["epoch"][-1] == 300
    hits = np.random.default_rng(0).random(50_000) < 0.7
    path = keep(tmp_path, ROWS["stce"], 0, hits, clusters=True, curves=curves)
    assert path.stat().st_size < 35_000
    kept.read_run(path, ROWS)
    with pytest.raises(DataError, match=r"take .* bytes, not 50,000"):
        keep(tmp_path, ROWS["stce"], 1, hits, place="x" * 50_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": 2}, "version 2 of the protocol, not 1"),
        ({"scale": "small"}, "of scale 'small', not smoke"),
        ({"config_digest": "0" * 64}, "its config has another digest"),
        ({"run": "other"}, "holds 'other_seed0', which is not what it is called or no row"),
        ({"seed": 1}, "holds 'stce_seed1'"),
        ({"seed": True}, "seed is missing or of another type"),
        ({"test_images": 10**9}, "a number is out of range"),
        ({"hits": "###"}, "is damaged"),
        ({"hits": ""}, "0 bytes for 101 images"),
        ({"curves": {"train": {"epoch": [1]}}}, "the eval curves are damaged"),
        ({"curves": {"train": {"epoch": [1], "loss": []}, "eval": {"epoch": []}}}, "different lengths"),
        ({"curves": {"train": {"epoch": ["1"]}, "eval": {"epoch": []}}}, "what is no number"),
        ({"curves": {"train": {"epoch": [None]}, "eval": {"epoch": []}}}, "have no epoch"),
        ({"seconds": "long"}, "seconds is no number"),
        ({"clusters": {"own": ""}}, "is damaged"),
        ({"place": "<script>"}, "place has characters that are not expected there"),
        ({"config": []}, "config is missing or of another type"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, changes, message):
    path = tmp_path / "stce_seed0.json"
    path.write_text(json.dumps(made(ROWS["stce"], 0, HITS) | changes))
    with pytest.raises(DataError) as error:
        kept.read_run(path, ROWS)
    text = str(error.value)
    assert message in text and "\n" not in text and "; " in text, text


@pytest.mark.parametrize("text", ["", "[]", "{", '{"protocol": 1}', "[" * 100_000, "1" * 60_000, "\x00"])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "stce_seed0.json"
    path.write_text(text)
    with pytest.raises(DataError, match="holds no results"):
        kept.read_run(path, ROWS)


def test_another_config_is_refused_by_its_first_key_and_a_new_key_is_none(tmp_path):
    entries = made(ROWS["stce"], 0, HITS)
    path = tmp_path / "stce_seed0.json"

    def write(**changes):
        config = {key: value for key, value in (entries["config"] | changes).items() if value is not None}
        path.write_text(json.dumps(entries | {"config": config, "config_digest": kept.digest(config)}))

    write(**{"optimizer.learning_rate": 0.5})
    with pytest.raises(DataError, match=r"another config: config.optimizer.learning_rate is 0.5, not 0.003"):
        kept.read_run(path, ROWS)
    write(unknown=1)
    with pytest.raises(DataError, match=r"config\.unknown is 1, not None"):
        kept.read_run(path, ROWS)
    write(epochs=None)
    with pytest.raises(DataError, match=r"config\.epochs is None, not 6\.0"):
        kept.read_run(path, ROWS)
    write(**{"augment.three_augment": None})  # as a version that did not have it would have written
    kept.read_run(path, ROWS)


def test_neither_seed_nor_place_is_part_of_a_config():
    config = kept.config_of(ROWS["stce"].config("--config.seed=7", "--config.data_dir=elsewhere"))
    assert config == kept.expected_config(ROWS["stce"])
    assert not {"seed", "data_dir", "loader_threads"} & config.keys()
    assert "model.embedding.conv.stem_widths" not in config, "options of what is not chosen"


def test_folders_merge_without_duplicates(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    hits = drawn_hits(np.random.default_rng(0), {"stce": 0.7, "patch": 0.5}, 2, 101)
    keep(here, ROWS["stce"], 0, hits["stce"][0])
    keep_images(there, 101)
    keep(there, ROWS["stce"], 0, ~hits["stce"][0])
    keep(there, ROWS["stce"], 1, hits["stce"][1])
    keep(there, ROWS["patch"], 0, hits["patch"][0])
    before = (here / "stce_seed0.json").read_bytes()
    assert merge(there, here, "smoke") == (["patch_seed0", "stce_seed1"], ["stce_seed0"])
    assert (here / "stce_seed0.json").read_bytes() == before, "a run that is there stays"
    assert merge(there, here, "smoke") == ([], ["patch_seed0", "stce_seed0", "stce_seed1"])
    found = {(run["run"], run["seed"]) for run in read_folder(here, "smoke")}
    assert found == {("stce", 0), ("stce", 1), ("patch", 0)} and read_images(here).class_ids[9] == "class9"


@pytest.mark.parametrize(("count", "changes"), [(101, {"images": "0" * 64}), (100, {})])
def test_other_images_are_refused_and_nothing_is_added(tmp_path, count, changes):
    here, there = tmp_path / "here", tmp_path / "there"
    keep(here, ROWS["stce"], 0, HITS)
    keep(there, ROWS["stce"], 1, HITS[:count], **changes)
    keep_images(here, 101)
    if "images" in changes:
        with pytest.raises(DataError, match="are of different images"):
            merge(there, here, "smoke")
    keep(there, ROWS["stce"], 2, HITS)
    with pytest.raises(DataError, match="tested on other images than the rest"):
        merge(there, here, "smoke")
    assert [path.name for path in here.glob("stce*")] == ["stce_seed0.json"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"images": "", "class_ids": ["a"], "labels": [[0, 1000000000]], "edges": ""}',
        '{"images": "", "class_ids": ["a"], "labels": [[1, 2]], "edges": "AAA="}',
        '{"images": "", "class_ids": ["a"], "labels": [[0, 3]], "edges": "AAA="}',
    ],
)
def test_damaged_images_are_refused(tmp_path, text):
    (tmp_path / IMAGES).write_text(text)
    with pytest.raises(DataError, match=r"images\.json is damaged"):
        read_images(tmp_path)


def test_images_are_read_as_they_were_written(tmp_path):
    keep_images(tmp_path, 23, classes=4)
    found = read_images(tmp_path)
    np.testing.assert_array_equal(found.labels, np.sort(np.arange(23) % 4))
    np.testing.assert_allclose(found.edges, np.linspace(0, 1, 23), atol=1 / 255)
