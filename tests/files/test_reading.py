"""Regular files only, and no more than they hold."""

import os

import pytest

from grace_moe.errors import InputFileError, TraceError
from grace_moe.files import read_bytes, reading, starts_with


def test_a_file_its_size_and_its_first_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert read_bytes(path, TraceError, 3) == b"abc"
    assert starts_with(path, 2, TraceError) == b"ab"
    with pytest.raises(TraceError, match="over the limit of 2 bytes"):
        read_bytes(path, TraceError, 2)


def test_whatever_else_a_path_may_be(tmp_path):
    """None is waited for, and none is read."""
    os.mkfifo(tmp_path / "pipe")
    for path, says in [
        ("/dev/zero", "not a regular file"),
        ("/dev/null", "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "nu\0ll", "null"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(InputFileError, match=f"file: .*{says}.*; check the path"):
            read_bytes(type(tmp_path)(path), InputFileError, 10)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"12")
    fstat = os.fstat

    def grow(descriptor):
        status = fstat(descriptor)
        path.write_bytes(b"12345")
        return status

    monkeypatch.setattr(reading.os, "fstat", grow)
    with pytest.raises(InputFileError, match="grew beyond 2 bytes while it was read"):
        read_bytes(path, InputFileError, 10)
