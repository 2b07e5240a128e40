"""How a worker gets its job: whole, or not at all."""

import io

import pytest

from grace_moe.runtime.job.worker import receive_job


def test_a_job_comes_whole():
    assert receive_job(io.BytesIO(b"5\n{...}and more")) == b"{...}"
    assert receive_job(io.BytesIO(b"0\n")) == b""


@pytest.mark.parametrize("sent", [b"", b"5", b"5\n", b"5\n{..."])
def test_a_launcher_that_ends_while_it_sends_gives_no_job(sent):
    assert receive_job(io.BytesIO(sent)) is None
