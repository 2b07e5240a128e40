"""The embedded model's routing on its three domains, with what its tokens are."""

import numpy as np
import pytest

from grace_moe.choice import request_costs
from grace_moe.embedded import embedded_model, embedded_texts
from grace_moe.planning import plan
from grace_moe.topology import Topology

PROMPT = 64


@pytest.fixture(scope="session")
def embedded_trace():
    """48 requests of 64 tokens, one new token each. The other tests of this folder start without torch."""
    from grace_moe.runtime.job.generation import GenerationOptions
    from grace_moe.runtime.job.recording import record_trace, requests_from_text
    from grace_moe.runtime.model.description import load_tokenizer
    from grace_moe.runtime.model.loading import load_whole_model

    folder = str(embedded_model())
    prompts = requests_from_text(list(embedded_texts().values()), load_tokenizer(folder), tokens_per_request=PROMPT, max_requests=48)
    options = GenerationOptions(new_tokens=1, batch_size=48)
    return record_trace(load_whole_model(folder), prompts, options, name="embedded", dataset="three domains")[0]


@pytest.fixture(scope="session")
def embedded(embedded_trace):
    """Placement and trace of one half; prompts of the other, and `[requests, N]` what their own routing says that they cost."""
    planned_on, others = embedded_trace.split_requests()
    placement = plan(planned_on, Topology.parse("2x2"), request_placement=True, effort=0.2)
    prompts = [others.token_ids[others.requests == request].tolist() for request in np.unique(others.requests)]
    return placement, planned_on, prompts, request_costs(placement, others, first_tokens=PROMPT)
