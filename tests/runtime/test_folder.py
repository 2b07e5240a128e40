"""The folder of a job: gone in the end, and what killed jobs left goes with the next."""

import os

import pytest

from grace_moe.runtime.job.folder import job_folder, remove_abandoned, remove_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def abandoned(temporary):
    """A job's folder as a killed launcher leaves it: nobody holds the lock."""
    folder = temporary / "grace-moe-job-killed"
    folder.mkdir()
    (folder / ".grace-moe-job.lock").touch()
    (folder / "results.json").write_text("{}")
    return folder


def test_it_is_gone_after_the_block_whatever_happens_inside(temporary):
    def fail_inside():
        with job_folder() as folder:
            (folder / "rank0.log").write_text("x")
            assert folder.stat().st_mode & 0o077 == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert list(temporary.iterdir()) == []


def test_the_next_job_removes_what_a_killed_one_left(temporary):
    left = abandoned(temporary)
    with job_folder() as folder:
        assert list(temporary.iterdir()) == [folder]
    assert not left.exists()


def test_a_job_that_runs_keeps_its_folder():
    with job_folder() as folder:
        remove_abandoned()
        assert folder.exists()


def test_folders_of_others_are_left_alone(temporary):
    """Without our lock a folder is removed only if it is empty, and no longer new."""
    full, old, young = (temporary / f"grace-moe-job-{name}" for name in ("full", "old", "young"))
    for folder in (full, old, young):
        folder.mkdir()
    (full / "thesis.tex").touch()
    for folder in (full, old):
        os.utime(folder, (0, 0))
    (temporary / "grace-moe-job-link").symlink_to(full)
    remove_abandoned()
    assert sorted(p.name for p in temporary.iterdir()) == ["grace-moe-job-full", "grace-moe-job-link", "grace-moe-job-young"]


def test_ranks_may_all_remove_it(temporary):
    folder = abandoned(temporary)
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()
