"""vLLM serves on four processes, two nodes of two by declaration, as one process does."""

import pytest

pytest.importorskip("vllm")


def test_tokens_are_those_of_one_process(serve):
    assert serve().tokens == serve(ranks=1).tokens
