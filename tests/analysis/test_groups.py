"""Accuracy by groups: which image is in which by a CSV file, what is counted, and what is refused in one line."""

import numpy as np
import pytest

from stce_jax.analysis.groups import Groups, accuracies, check_by, read_groups
from stce_jax.analysis.intervals import wilson_interval
from stce_jax.errors import ConfigError, DataError

IMAGES = ["/data/val/cat/1.png", "/data/val/cat/2.png", "/data/val/dog/1.png", "/data/val/dog/é \udce9.png"]


def grouped(tmp_path, text, images=IMAGES, column="camera"):
    """(the group of each image, rows without image) by a CSV file."""
    path = tmp_path / "groups.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogateescape"))
    found = read_groups(f"{path}:{column}", images)
    return [found.names[place] if place >= 0 else None for place in found.of_images], found.rows_without_image


def test_the_worst_group_comes_first_with_wilsons_interval():
    hits = np.array([1, 0, 1, 1, 0, 1, 1], bool)
    found = accuracies(Groups(["a", "b", "empty", "c"], np.array([0, 0, 1, 1, 3, -1, -1])), hits)
    assert [(row["group"], row["images"], row["top1"]) for row in found] == [
        *(("c", 1, 0.0), ("a", 2, 0.5), ("b", 2, 1.0)),
        ("empty", 0, None),
    ]
    assert (found[1]["low"], found[1]["high"]) == wilson_interval(1, 2)[1:] and found[3]["low"] is None


@pytest.mark.parametrize(
    "text",
    [
        "path,camera\nval/cat/1.png,A\ncat/2.png,B\n/data/val/dog/1.png,A\ndog/é \udce9.png,B\n",
        "\ufeffcamera,path,index\nA,./cat/1.png,9\nB,2.png,9\nA,dog/../dog/1.png,9\nB,é \udce9.png,9\n",
        'index,note,camera\n0,"a, b\nc",A\n1,,B\n2,,A\n 3 ,,B\n',
    ],
    ids=["paths below any folder", "names, and path counts before index", "index"],
)
def test_rows_are_matched_by_path_or_by_index(tmp_path, text):
    assert grouped(tmp_path, text) == (["A", "B", "A", "B"], 0)


def test_rows_without_image_and_images_without_row_are_counted(tmp_path):
    text = "path,camera\ncat/1.png,A\ncat/3.png,A\n,A\nfar/above/data/val/cat/1.png,A\ndog/1.png\n"
    assert grouped(tmp_path, text) == (["A", None, "", None], 3)
    assert grouped(tmp_path, "index,camera\n3,A\n4,B\n") == ([None, None, None, "A"], 1)


REFUSED = {
    "": r"has no column 'camera'; its columns are none",
    "path,lens\ncat/1.png,A\n": r"has no column 'camera'; its columns are path, lens",
    "file,camera\ncat/1.png,A\n": r"has no column path, or index, to tell the images by; its columns are file, camera",
    "path,camera\n1.png,A\n": r"line 2 of .*: path '1\.png' is of /data/val/cat/1\.png and /data/val/dog/1\.png; give",
    "path,camera\n2.png,A\ncat/2.png,A\n": r"lines 2 and 3 of .* are of the same image, /data/val/cat/2\.png",
    "index,camera\n-1,A\n": r"line 2 of .*: index '-1' is no whole number from 0 on",
    "index,camera\n1e3,A\n": r"index '1e3' is no whole number from 0 on",
    "path,camera\n": r"no row of .* is of one of the images \(it has none, the first image is '/data/val/cat/1\.png'\)",
    "path,camera\na.png,A\n": r"no row of .*\(the first is of 'a\.png', the first image is .*\); give a column path",
    'path,camera\n"' + "x" * 200_000 + '",A\n': r"cannot read .*: line \d+: field larger than field limit",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_matched_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(DataError, match=REFUSED[text]) as error:
        grouped(tmp_path, text)
    assert "\n" not in str(error.value)


def test_images_of_records_have_no_paths_and_are_matched_by_index_alone(tmp_path):
    images = [f"image {index} of digits/1.0.0 val" for index in range(3)]
    assert grouped(tmp_path, "index,camera\n1,A\n", images) == ([None, "A", None], 0)
    with pytest.raises(DataError, match=r"the first image is 'image 0 of digits/1\.0\.0 val'\); give .* or index"):
        grouped(tmp_path, "path,camera\n0.png,A\n", images)


def test_what_is_no_file_and_no_column(tmp_path):
    for text in ("classes", ":camera", "groups.csv:", "groups.csv"):
        with pytest.raises(ConfigError, match=r"it must be class, or FILE\.csv:COLUMN"):
            check_by(text)
    check_by("class")
    check_by("C:/groups.csv:camera")
    with pytest.raises(DataError, match=r"cannot read .*none\.csv: .*; give --by=FILE"):
        read_groups(f"{tmp_path}/none.csv:camera", IMAGES)
