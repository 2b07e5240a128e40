"""vLLM on several processes of this machine, for tests: what to run (`Job`), who runs it (`Nursery`), and what came of it (`Outcome`)."""

from serving.job import Job, Outcome
from serving.nursery import Nursery, RankError

__all__ = ["Job", "Nursery", "Outcome", "RankError"]
