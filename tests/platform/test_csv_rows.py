"""Rows of a user's CSV file, with the lines on which they begin."""

import pytest

from stce_jax.platform.csv_rows import read_rows


def test_a_row_has_the_line_on_which_it_begins(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffa,b\n\n"two\nlines",c\r\nlast\n'.encode())
    assert list(read_rows(path, 100)) == [(1, ["a", "b"]), (3, ["two\nlines", "c"]), (5, ["last"])]


def test_names_that_are_no_utf_8_come_back_as_they_are(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xe9.png,1\n")
    assert list(read_rows(path, 100)) == [(1, ["\udce9.png", "1"])]


def test_what_is_no_csv_and_what_is_too_large_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"' + "x" * 200_000 + '",1\n')
    with pytest.raises(OSError, match=r"line 2: field larger than field limit"):
        list(read_rows(path, 300_000))
    with pytest.raises(OSError, match=r"it has more than 100 bytes"):
        list(read_rows(path, 100))
