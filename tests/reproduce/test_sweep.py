"""The tables as runs, what their cells have come to, and the report of it."""

import html.parser
import itertools
import re
import shlex

import numpy as np
import pytest
from sweep_cells import fail, finish

from stce_jax import cli, create_model
from stce_jax.analysis.costs import count_parameters
from stce_jax.configs.tables.scales import super_tokens
from stce_jax.data.catalog import open_dataset
from stce_jax.errors import ConfigError
from stce_jax.reproduce import documents, notes
from stce_jax.reproduce.cells import TABLES, TRAINED, cells_of, load_rows
from stce_jax.reproduce.report import write_report
from stce_jax.reproduce.results import differences, read_result
from stce_jax.training import assemble as runs
from stce_jax.training.state import abstract_variables
from stce_jax.workdir import config as configuration

SCALES = ("paper", "medium_128", "medium", "small", "smoke")
PRINTED = {  # the paper's, row by row
    "table6": [78.44, 81.14, 83.52, 78.44 + 0.76, 81.14 + 1.58],
    "table7": [48.26, 80.20, 80.68, 82.18, 83.52, 81.50],
    "table8": [None, 82.96, 83.02, 83.52, 83.30],
    "readings": [None] * 9,
}


@pytest.mark.parametrize("table", PRINTED)
def test_a_table_has_the_papers_rows_and_figures(table):
    assert [row.paper.get("top1") for row in load_rows(table)] == pytest.approx(PRINTED[table], nan_ok=True)


def test_table_8_has_the_papers_speeds_and_table_1_its_counts():
    assert [row.paper.get("images_per_second") for row in load_rows("table8")] == [None, 766, 749, 737, 718]
    assert [row.paper["embedding_parameters"] for row in load_rows("table1")] == ["0.30M", "1.00M", "0.09M"]


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_rows_that_share_a_run_are_the_same_run_and_every_row_gives_one_grid(scale):
    configs, grids = {}, set()
    for row in itertools.chain(*(load_rows(table, scale) for table in TABLES)):
        config = row.config()
        assert configs.setdefault(row.run, config) == config, f"{row.run} differs between tables"
        grids.add(runs.build_model(config, 10).embedding.grid(config.image_size, config.image_size))
        assert row.run not in row.against
    assert len(grids) == 1, f"rows give other numbers of tokens: {grids}"
    texts = [config.to_json() for config in configs.values()]
    assert len(set(texts)) == len(texts), "two runs have the same config"


def test_what_the_papers_rows_change_is_what_they_say():
    paper = configuration.flatten(load_rows("table6")[2].config())
    assert paper == configuration.flatten(configuration.load_config("stce_vit_s")), "Table 6's stce is not the paper's"
    changed = {
        row.run: {key: value for key, value in configuration.flatten(row.config()).items() if value != paper[key]}
        for row in itertools.chain(*map(load_rows, TABLES))
    }
    assert changed["patch"] == {"model.name": "vit_s_patch"}
    assert changed["conv_500"] == {"model.name": "vit_s_conv", "epochs": 500.0}
    assert changed["stack_none"] == super_tokens(stem_widths=(), stem_strides=(), cell=(16, 16))
    assert changed["stack_4"] == super_tokens(stem_widths=(16, 32, 32, 64), stem_strides=(2, 1, 2, 1), cell=(4, 4))
    assert changed["stack_more"]["model.embedding.stce.stem_strides"] == (2, 1, 2, 1, 2, 1, 2)
    assert changed["stack_1_stride_2"] == super_tokens(stem_widths=(16,), stem_strides=(2,), cell=(8, 8))
    assert changed["iterations_4"] == super_tokens(iterations=4)
    assert changed["pooling"] == super_tokens(iterations=0)
    assert changed["border_mask"] == super_tokens(border="mask")
    assert changed["differentiable"] == super_tokens(differentiable=True)
    assert changed["deit_mixing"] == {"augment.mixup": 0.8, "augment.cutmix": 1.0}
    assert changed["conv1x1"] == {"model.name": "vit_s_conv1x1"} and changed["stce"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_the_commands_of_a_cell_are_its_config(scale, tmp_path):
    rows = list(itertools.chain(*(load_rows(table, scale, ["--config.log_every=7"]) for table in TABLES)))
    for cell in cells_of(rows, [3], tmp_path / "a sweep"):
        train, evaluate = cell.commands("my data")
        words = shlex.split(shlex.join(train))
        arguments, overrides = cli.make_parser().parse_known_args(words)
        config = configuration.load_config(arguments.config, overrides)
        assert config == cell.row.config("--config.seed=3"), f"{cell.directory.name}: {train}"
        assert config.log_every == 7 and arguments.data_dir == "my data"
        assert arguments.workdir == str(cell.directory)
        arguments, rest = cli.make_parser().parse_known_args(evaluate)
        assert arguments.output == f"{cell.directory}/evaluation" and not rest


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": "best"},
        {"ema": True},
        {"split": "train"},
        {"reduction": "topk"},
        {"step": 44, "epoch": 1.96},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_only_the_last_epochs_evaluation_finishes_a_cell(tmp_path, changes):
    """One made by hand, of another checkpoint or of a run that is still being trained, would be a wrong figure."""
    (cell,) = cells_of(load_rows("table8", "smoke")[:1], [0], tmp_path)
    assert not cell.finished()
    finish(cell, [True] * 10)
    assert cell.finished()
    finish(cell, [True] * 10, **changes)
    assert not cell.finished()
    (cell.directory / "evaluation" / "evaluation.json").write_text("{")
    assert not cell.finished()


def test_a_cell_that_was_made_by_hand_has_no_minutes_and_one_that_was_stopped_no_failure(tmp_path):
    row = load_rows("table8", "smoke")[0]
    by_hand, stopped, failed = cells_of([row], [0, 1, 2], tmp_path)
    finish(by_hand, [True, False])
    (by_hand.directory / "cell.json").unlink()
    (by_hand.directory / "metrics.jsonl").write_text("")
    fail(stopped, error="stopped by SIGTERM", exit_code=75)
    fail(failed)
    result = read_result(row, [0, 1, 2], tmp_path)
    assert result.top1 == [0.5] and result.seconds == [None] and np.isnan(result.best[0])
    assert result.unfinished == {1: "not finished", 2: "there is no GPU"}


def test_cells_come_seed_by_seed_and_once(tmp_path):
    rows = load_rows("table1", "smoke") + load_rows("table6", "smoke") + load_rows("table8", "smoke")
    names = [cell.directory.name for cell in cells_of(rows, [1, 0], tmp_path)]
    runs_of_seed = ["patch", "conv", "stce", "patch_500", "conv_500", "pooling"]
    runs_of_seed += [f"iterations_{number}" for number in (1, 2, 4)]
    assert names == [f"{run}_seed{seed}" for seed in (1, 0) for run in runs_of_seed]


def test_unknown_tables_and_scales_are_refused():
    with pytest.raises(ConfigError, match="no table 'table2'; there are table1, table6"):
        load_rows("table2")
    with pytest.raises(ConfigError, match="no scale 'tiny'; there are paper, medium_128, medium, small, smoke"):
        load_rows("table6", "tiny")


def counts(model):
    params = abstract_variables(model, 224)["params"]
    return {"parameters": count_parameters(params), "embedding": count_parameters(params["embedding"])}


def named(name, **options):
    return counts(create_model(name, num_classes=100, **options))


@pytest.mark.slow
def test_the_counts_in_the_notes_are_counted():
    without_module_6 = {"stem_widths": (16, 32, 32, 64, 64), "stem_strides": (2, 1, 2, 1, 2)}
    conv, stce = named("vit_s_conv"), named("vit_s_stce")
    stacks = [row for row in load_rows("table7") if row.run in ("stack_none", "stack_4", "stack_more")]
    counted = {
        "table1": [
            conv["embedding"],
            named("vit_s_earlyconv")["embedding"],
            stce["embedding"],
            named("vit_s_stce", **without_module_6)["embedding"],
        ],
        "contradictions": [
            conv["parameters"],
            named("vit_s_conv1x1")["parameters"],
            stce["embedding"],
            *(counts(runs.build_model(row.config(), 100))["parameters"] for row in stacks),
        ],
    }
    for name, numbers in counted.items():
        written = re.findall(r"\d+(?:,\d{3})+", " ".join(notes.NOTES[name]))
        assert written == [f"{number:,}" for number in numbers], name


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """(rows of table 6, workdir): two seeds of 200 images; conv_500 has failed, patch_500 not begun with seed 1."""
    rows, workdir = load_rows("table6", "smoke"), tmp_path_factory.mktemp("sweep")
    cells = {cell.directory.name: cell for cell in cells_of(rows, [0, 1], workdir)}
    images = np.arange(200)
    for seed in (0, 1):
        finish(cells[f"patch_seed{seed}"], images % 2 == 0, best=0.6)
        finish(cells[f"conv_seed{seed}"], images % 4 > 0, seconds=60.0 + 120 * seed)
        finish(cells[f"stce_seed{seed}"], (images % 10 > 0) | (images == 20 * seed))
        fail(cells[f"conv_500_seed{seed}"], error="loss <NaN> | at step 3", exit_code=5)
    finish(cells["patch_500_seed0"], images % 2 == 0)
    return rows, workdir


def test_differences_pair_seeds_and_images(sweep):
    rows, workdir = sweep
    results = {row.run: read_result(row, [1, 0], workdir) for row in rows}  # another order of seeds than on disk
    assert results["stce"].top1 == [0.905, 0.905] and results["patch"].best == [0.6, 0.6]
    assert results["conv"].images_per_second == [200.0, 200.0] and results["conv"].seconds == [180.0, 60.0]
    found = {(pair.first.run, pair.second.run): pair for pair in differences(list(results.values()))}
    assert set(found) == {("conv", "patch"), ("stce", "conv"), ("stce", "patch"), ("patch_500", "patch")}
    pair = found["stce", "patch"]
    assert pair.paper == pytest.approx(5.08) and pair.over_seeds.mean == pytest.approx(0.405)
    # Of the even images, those that end with 0 are missed by stce alone, but for one; the odd ones by patch.
    assert pair.mcnemar[0][:2] == (100, 19) and pair.mcnemar[0][2] < 1e-10
    assert pair.over_images.low < 0.405 < pair.over_images.high
    assert len(found["patch_500", "patch"].mcnemar) == 1, "seeds that one of the two lacks take no part"
    assert results["conv_500"].unfinished == {1: "loss <NaN> | at step 3", 0: "loss <NaN> | at step 3"}
    assert results["patch_500"].unfinished == {1: "not finished"}


TIMED = {"what": "training", "batch_size": 64, "dtype": "float32", "device": "cpu", "error": ""}
SPEED = [
    TIMED | {"model": "stce", "images_per_second": 1234.5, "ratio": 1.5, "ratio_margin": 0.01},
    TIMED | {"model": "conv", "images_per_second": None, "ratio": None, "error": "out of memory"},
]


@pytest.fixture(scope="module")
def report(sweep, data_dir):
    rows, workdir = sweep
    rows = load_rows("table1", "smoke") + rows
    options = {"command": "stce reproduce all", "dataset": open_dataset("digits", data_dir), "speed": {"table6": SPEED}}
    return write_report(workdir, rows, [0, 1], **options)


def test_an_interval_stays_within_what_an_accuracy_can_be(tmp_path):
    row = load_rows("table8", "smoke")[0]
    for cell, hits in zip(cells_of([row], [0, 1], tmp_path), ([True] * 20, [True] * 19 + [False]), strict=True):
        finish(cell, hits)
    both, one = (read_result(row, seeds, tmp_path).interval() for seeds in ([0, 1], [0]))
    assert both.mean == pytest.approx(0.975) and both.low < 0.7 and both.high == 1.0, both
    assert one.mean == 1.0 and np.isnan(one.low) and np.isnan(one.high), "one seed has no interval"


def cell_rows(text):
    """Table rows of a Markdown text as lists of cells."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_report_holds_every_figure_beside_the_papers(report):
    text = report.read_text()
    rows = cell_rows(text)
    assert ["super-token convolution", "0.09M", "132,192", "1.47"] in rows, "Table 1 is not at the paper's size"
    patch, conv, stce, patch_500, conv_500 = [row for row in rows if len(row) == 7 and " epochs for " in row[0]][:5]
    images = "[43.14, 56.86]"  # Wilson's interval of 100 of 200
    assert patch[:4] == ["patch, 6 epochs for 300", "78.44", "50.00 [50.00, 50.00]", images]
    assert patch[4:] == ["50.00, 50.00", "60.00, 60.00", "2 of 2"]
    assert stce[1:3] == ["83.52", "90.50 [90.50, 90.50]"] and stce[4] == "90.50, 90.50"
    assert conv_500 == ["convolution, 10 epochs for 500", "82.72", "–", "–", "–", "–", "0 of 2"]
    assert patch_500[6] == "1 of 2" and conv[1] == "81.14"
    assert "The paper's order of the means, stce > conv > patch, holds here: stce > conv > patch." in text
    assert "loss <NaN> | at step 3" in text, "why a run failed is not said"
    assert "7 of 10 runs are finished" in text and "node7, 2 cores" in text
    for word in ("best epoch, chosen on the test images", "`image_size: 224 -> 32`", "cannot be reconciled"):
        assert word in text, f"{word} is missing"
    assert "batches of 64, float32, on one cpu" in text and "the ratio to `super-token convolution, 6 epochs" in text
    cost = next(row for row in rows if row[0] == "super-token convolution, 6 epochs for 300" and row[1] == "17M")
    assert cost[2] == "17,997,508" and "1,234 (150.0% ± 1.0%)" in cost and cost[-2:] == ["200", "1.5"]
    assert "out of memory" in next(row for row in rows if row[0] == "convolution, 6 epochs for 300" and row[1] == "20M")
    assert (report.parent / "figure3.png").read_bytes()[:4] == b"\x89PNG"


def test_the_verdict_needs_both_intervals(report):
    verdicts = {row[0]: row for row in cell_rows(report.read_text()) if " less " in row[0]}
    stce_conv = verdicts["super-token convolution, 6 epochs for 300 less convolution, 6 epochs for 300"]
    assert stce_conv[1:3] == ["+2.38", "+15.50 [+15.50, +15.50]"] and stce_conv[-1] == "the first is higher"
    same = verdicts["patch, 10 epochs for 500 less patch, 6 epochs for 300"]
    assert same[1] == "+0.76" and same[-1] == "undecided by the images of one seed; of other seeds it says nothing"


class Page(html.parser.HTMLParser):
    """What a page refers to, and whether its tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_needs_no_other_file_and_is_whole(report):
    text = report.with_suffix(".html").read_text()
    page = Page(text)
    assert not page.open and not page.wrong, f"tags out of order: {page.open} {page.wrong}"
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "loss &lt;NaN&gt; | at step 3" in text and "<NaN>" not in text
    assert "<code>image_size: 224 -&gt; 32</code>" in text


@pytest.mark.slow
def test_a_sweep_without_a_finished_run_has_a_report(tmp_path, data_dir):
    options = {"command": "stce reproduce table8", "dataset": open_dataset("digits", data_dir), "speed": {}}
    report = write_report(tmp_path, load_rows("table8", "smoke"), [0], **options)
    text = report.read_text()
    assert "0 of 5 runs are finished" in text and "Computed on: nothing yet" in text
    assert ["T = 1", "82.96", "–", "–", "–", "–", "0 of 1"] in cell_rows(text)


@pytest.mark.slow
@pytest.mark.parametrize("table", TRAINED)
def test_every_table_has_a_report_once_a_run_is_finished(table, tmp_path, data_dir):
    """At a scale that every table has; the recipe's have no model of the paper's size to count."""
    row, *_ = load_rows(table, "smoke")
    (cell,) = cells_of([row], [0], tmp_path)
    split = "holdout" if row.config().holdout else "val"
    finish(cell, [True] * 15 + [False] * 5, split=split)
    options = {"command": f"stce reproduce {table}", "dataset": open_dataset("digits", data_dir), "speed": {}}
    text = write_report(tmp_path, [row], [0], **options).read_text()
    assert "1 of 1 runs are finished" in text and row.label in text and "75.00" in text, text
    title = "The paper's tables, reproduced" if table in TABLES else notes.TITLES[table]
    assert text.startswith(f"# {title}\n") and text.count(notes.TITLES[table]) == 1, text


def test_documents_escape_what_would_break_them():
    blocks = [documents.table([{"a|b": "x|y", "<i>": "`1<2`"}]), documents.paragraph("a & `b`")]
    assert documents.to_markdown(blocks) == "| a\\|b | <i> |\n| --- | --- |\n| x\\|y | `1<2` |\n\na & `b`\n"
    page = documents.to_html(blocks, "T<")
    assert "<td>x|y</td><td><code>1&lt;2</code></td>" in page and "<title>T&lt;</title>" in page
    assert "<th>&lt;i&gt;</th>" in page and "<p>a &amp; <code>b</code></p>" in page


def test_documents_have_no_empty_headings_tables_and_lists():
    heading = documents.heading
    empty = [heading("one"), heading("two", 3), documents.table([]), heading("three"), documents.bullets([])]
    blocks = [heading("title", 1), *empty, heading("four"), heading("five", 3), documents.paragraph("text"), *empty]
    assert documents.to_markdown(blocks) == "# title\n\n## four\n\n### five\n\ntext\n"
    assert documents.to_html(blocks, "T").count("<h") == 4, "of <html> and three headings"


def test_wide_tables_scroll_and_can_be_reached_by_the_keyboard():
    page = documents.to_html([documents.table([{"a": "1"}])], "T")
    assert '<div class="scroll" tabindex="0" role="region"' in page and ".scroll:focus-visible" in page


def test_documents_show_invisible_characters():
    blocks = [documents.table([{"run": "a\x1b[2J\u202eb"}]), documents.commands("all", ["stce \udcff", "two"])]
    for text in (documents.to_markdown(blocks), documents.to_html(blocks, "T\x1b")):
        assert r"a\x1b[2J\u202eb" in text and "stce \\udcff\ntwo" in text
        assert all(line.isprintable() for line in text.splitlines())
