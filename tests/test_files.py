"""Files are written whole or not at all, and read with bounds."""

import errno
import json
import os

import pytest

from grace_moe import files
from grace_moe.errors import GraceError, InputFileError, PlacementError
from grace_moe.files import dump_json, read_json, write_atomically


def test_written_is_what_was_given(tmp_path):
    path = tmp_path / "a"
    for data in (b"", b"one", b"\x00" * 100_000, b"two"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.stat().st_mode & 0o777 == 0o644


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("function", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, function, old):
    path = tmp_path / "plan.json"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(files.os, function, full_disk)
    with pytest.raises(GraceError, match=r"plan\.json: can't be written: No space left on device; check the folder and the disk") as error:
        write_atomically(path, b"new")
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"plan.json": old})


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"plan.json": b"old"}


@pytest.mark.parametrize("name", ["missing/plan.json", "", "x" * 300, "nu\0ll"])
def test_a_path_that_cannot_be_is_an_error_of_ours(tmp_path, name):
    with pytest.raises(GraceError, match="can't be written"):
        write_atomically(tmp_path / name, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(GraceError, match="can't be written: Not a directory"):
        write_atomically(tmp_path / "file" / "plan.json", b"x")


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_is_written_into_and_never_replaced(tmp_path):
    """`-o /dev/stdout`, or `-o /dev/null` by root, must not swap the device for a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_the_same_value_has_one_text():
    assert dump_json({"b": 1, "a": [0.1, "é"]}) == dump_json({"a": [0.1, "é"], "b": 1})
    assert dump_json({"b": None}) == b'{\n  "b": null\n}\n'
    with pytest.raises(ValueError):
        dump_json(float("nan"))


HOSTILE_TEXTS = {
    "empty": b"",
    "truncated": b'{"nodes": [',
    "not UTF-8": b'"\xff\xfe\xfa"',
    "nested deeply": b"[" * 200_000,
    "nested deeply, closed": b"[" * 100_000 + b"]" * 100_000,
    "NaN": b'{"a": NaN}',
    "Infinity": b"[-Infinity]",
    "float out of range": b"[1e999]",
    "integer of 5000 digits": b"9" * 5000,
    "half a surrogate pair": b'["\\uD800"]',
    "two values": b"{} {}",
    "null bytes": b"\0" * 64,
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_what_is_not_json_is_an_input_error_of_one_line(tmp_path, name):
    path = tmp_path / "a.json"
    path.write_bytes(HOSTILE_TEXTS[name])
    with pytest.raises(PlacementError, match=r"a\.json: file: not valid JSON .*; write it again") as error:
        read_json(path, PlacementError)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_a_missing_file_a_folder_and_a_file_too_large(tmp_path, monkeypatch):
    with pytest.raises(InputFileError, match="No such file or directory; check the path"):
        read_json(tmp_path / "a.json", InputFileError)
    with pytest.raises(InputFileError, match="Is a directory"):
        read_json(tmp_path, InputFileError)
    with pytest.raises(InputFileError):
        read_json(tmp_path / "nu\0ll", InputFileError)
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    path = tmp_path / "large.json"
    path.write_bytes(json.dumps("x" * 8).encode())
    assert read_json(path, InputFileError) == "x" * 8
    path.write_bytes(json.dumps("x" * 9).encode())
    with pytest.raises(InputFileError, match="over the limit of 10 bytes; is it the right file"):
        read_json(path, InputFileError)
