"""Files are written whole or not at all, where they may be, and leave nothing behind."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from grace_moe.errors import GraceError
from grace_moe.files import check_output, write_atomically, writing


def test_written_is_what_was_given(tmp_path):
    path = tmp_path / "a"
    for data in (b"", b"one", b"\x00" * 100_000, b"two"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_keeps_to_the_umask_and_an_old_one_keeps_its_mode(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "new", b"")
        (tmp_path / "old").write_bytes(b"")
        (tmp_path / "old").chmod(0o640)
        write_atomically(tmp_path / "old", b"again")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("function", ["replace", "fsync", "open"])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, function, old):
    path = tmp_path / "plan.json"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(writing.os, function, full_disk)
    with pytest.raises(GraceError, match=r"plan\.json: can't be written: No space left on device; check the folder and the disk") as error:
        write_atomically(path, b"new")
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"plan.json": old})


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(writing.os, "fsync", interrupted)
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


KILLED = """
import os, sys
from pathlib import Path
from grace_moe.files import writing

def wait(descriptor):
    print("writing", flush=True)
    sys.stdin.read()

writing.os.fsync = wait
writing.write_atomically(Path(sys.argv[1]), b"never")
"""


def test_what_a_killed_write_left_is_removed_by_the_next_and_a_living_one_is_not_disturbed(tmp_path):
    path, other = tmp_path / "plan.json", tmp_path / "plan.json.old"
    writers = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for target in (path, path, other)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert len(list(tmp_path.iterdir())) == 3
        write_atomically(path, b"whole")
        assert path.read_bytes() == b"whole"
        assert len(list(tmp_path.iterdir())) == 3, "the file, and what two living writers write"
        for writer in writers[1:]:
            writer.communicate(timeout=60)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "plan.json.old"]


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("x" * 255)
    write_atomically(path, b"1")
    write_atomically(path, b"2")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["missing/plan.json", "", "x" * 300, "nu\0ll", "file/plan.json", "folder"])
def test_an_output_that_cannot_be_is_found_before_the_work(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(GraceError, match=r"can't be written: .*; check the folder and the disk"):
        check_output(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_output_that_can_be_is_not_touched(tmp_path):
    check_output(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").write_bytes(b"old")
    check_output(tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"old"
    check_output(tmp_path / ".." / tmp_path.name / "old")
    os.mkfifo(tmp_path / "pipe")
    check_output(tmp_path / "pipe")
