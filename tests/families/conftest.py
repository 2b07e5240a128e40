"""One pool of ranks for all tests of families."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.rank_pool import RankPool


@pytest.fixture(scope="package")
def pool():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        ranks = RankPool()
        yield ranks
        ranks.close()
