"""Reading files: whatever is wrong with one is a single line that names it."""

from __future__ import annotations

import hashlib
import os

import pytest

from maw.errors import DataError, ModelError, reason
from maw.storage.disk import size_text
from maw.storage.files import read_json, sha256


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"{", "is not JSON (Expecting property name"),
        (b"\xff", "is not JSON ('utf-8' codec can't decode"),
        (b"[" * 100_000, "is not JSON (maximum recursion depth"),
        (b"9" * 5000, "is not JSON (Exceeds the limit"),
    ],
)
@pytest.mark.parametrize("error", [DataError, ModelError])
def test_a_file_that_is_no_json_is_one_line_with_its_path(tmp_path, content, says, error):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as raised:
        read_json(path, error)
    assert str(raised.value).startswith(f"{path}: {says}") and "\n" not in str(raised.value)


def test_the_hash_of_a_file_is_that_of_its_bytes_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"words")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"words").hexdigest()
    with pytest.raises(ModelError, match=r"b: cannot be read \(No such file or directory\)"):
        sha256(tmp_path / "b", ModelError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(2, "No such file"), "No such file"),
        (ValueError("\n  first  line.\nsecond"), "first line"),
        (ValueError(), "ValueError"),
        (RuntimeError(f"in the writer:\n{os.strerror(28)}"), "the disk is full (No space left on device)"),
    ],
)
def test_the_reason_of_an_error_is_one_line(error, text):
    assert reason(error) == text


def test_sizes_have_a_decimal_below_the_given_number_of_units():
    assert [size_text(27_000_000), size_text(27_000_000, whole_from=1000)] == ["27 MB", "27.0 MB"]
