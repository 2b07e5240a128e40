"""What a prompt's tokens say of where it should go."""

from dataclasses import replace

import numpy as np
import pytest

from grace_moe.errors import MismatchError, TraceError
from grace_moe.frontend.prompt_costs import DOUBT, PromptCosts
from tests.frontend.samples import placement, trace


def test_costs_by_hand():
    """Each token of the trace is there four times, always with its expert; a token seen once would count less."""
    costs = PromptCosts(placement(), trace())
    sure = 0.5 * 4 / (4 + DOUBT)
    assert costs.of([0, 2, 4]).tolist() == [-sure, sure]
    assert costs.of([1]).tolist() == [sure, -sure]
    assert costs.of([0, 1]).tolist() == [0, 0]
    assert costs.of([0, 99]).tolist() == [-sure / 2, sure / 2]


def test_prompts_that_tell_nothing_cost_nothing():
    for trained in (trace(), trace(tokens=0)):
        costs = PromptCosts(placement(), trained)
        assert costs.of([]).tolist() == costs.of([99, 2**31 - 1]).tolist() == [0, 0]


def test_what_it_needs():
    with pytest.raises(TraceError, match="token_ids: none, so that prompts tell nothing; record it with --token-ids"):
        PromptCosts(placement(), replace(trace(), token_ids=None))
    with pytest.raises(MismatchError, match="source_costs: none"):
        PromptCosts(placement(costs=()), trace())
    with pytest.raises(MismatchError, match="num_experts"):
        PromptCosts(placement(), replace(trace(), num_experts=3))


def test_the_embedded_models_domains_are_told_apart(embedded):
    """Prompts of text that the trace has not: most of them go where the routing of the whole prompt says."""
    planned, trained, prompts, routed = embedded
    costs = PromptCosts(planned, trained)
    told = np.array([costs.of(prompt) for prompt in prompts])
    assert np.corrcoef(told[:, 0] - told[:, 1], routed[:, 0] - routed[:, 1])[0, 1] > 0.5
