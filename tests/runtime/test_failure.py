"""Which rank explains a failure, and what the launcher says of it: exit codes and logs by hand."""

import pytest

from grace_moe.errors import GraceError, InputFileError, MismatchError, ModelError, RankError
from grace_moe.runtime.job.failure import error_of_parent, error_of_ranks, parent_log

LOST = (7, "error: rank 0: lost rank 1 (Connection closed)")


@pytest.fixture
def error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def of(*ranks):
        for rank, (_, log) in enumerate(ranks):
            (tmp_path / f"rank{rank}.log").write_text(log)
        return error_of_ranks([code for code, _ in ranks], tmp_path)

    return of


@pytest.mark.parametrize(
    ("kind", "code"), [(GraceError, 1), (InputFileError, 3), (MismatchError, 4), (ModelError, 5)], ids=lambda value: str(value)
)
def test_an_error_of_a_rank_is_the_launchers(error, kind, code):
    """Its kind, code and message, whoever noticed first, and whatever torch's threads said after it."""
    got = error(LOST, (code, "a warning\nerror: plan.json: layers: wrong; mend it\nterminate called\n"), (None, ""))
    assert type(got) is kind
    assert (got.exit_code, str(got)) == (code, "plan.json: layers: wrong; mend it")


def test_a_killed_rank_is_named_before_those_that_lost_it(error):
    got = error((-6, "terminate called"), LOST, (-9, ""), (None, ""))
    assert type(got) is RankError
    assert str(got) == "rank 2 of 4 stopped: killed by SIGKILL; out of memory?; the other ranks were stopped"
    assert "rank 0 of 2 stopped: killed by signal 6" in str(error((-6, ""), LOST))


def test_ranks_that_only_lost_another_say_so(error):
    assert "rank 0 of 2 stopped: rank 0: lost rank 1 (Connection closed); the other" in str(error(LOST, (None, "")))


def test_the_log_of_an_unexpected_error_is_kept(error, tmp_path):
    got = error((None, ""), (1, "Traceback\n  ...\nKeyError: 3\n"))
    assert type(got) is RankError
    (kept,) = tmp_path.glob("grace-moe-rank1-*.log")
    assert str(got) == f"rank 1 of 2 stopped: KeyError: 3; the other ranks were stopped; all that it said: {kept}"
    assert kept.read_text() == "Traceback\n  ...\nKeyError: 3\n"


def test_the_log_of_a_fault_behind_an_error_of_ours_is_kept(error, tmp_path):
    log = "Traceback (most recent call last):\n  ...\nKeyError: 3\nerror: model: weights: can't be read; report it\n"
    got = error((5, log))
    (kept,) = tmp_path.glob("grace-moe-rank0-*.log")
    assert type(got) is ModelError
    assert str(got) == f"model: weights: can't be read; report it; all that it said: {kept}"
    assert kept.read_text() == log


def test_the_log_of_a_killed_rank_is_kept_where_it_said_something(error, tmp_path):
    assert str(error((-11, "Fatal Python error\n"))).endswith(f"all that it said: {next(tmp_path.glob('grace-moe-rank0-*.log'))}")


def test_ranks_that_could_not_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    parent_log(tmp_path).write_text("Traceback\nImportError: no libtorch\n")
    said = str(error_of_parent(1, tmp_path))
    assert said.startswith("the ranks could not be started: ImportError: no libtorch; all that it said: ")
    assert "killed by SIGKILL" in str(error_of_parent(-9, tmp_path))


def test_a_rank_that_said_nothing(error):
    assert "rank 0 of 1 stopped: it said nothing" in str(error((1, "")))
