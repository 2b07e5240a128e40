"""Spans: their summary by hand, the trace that a viewer reads, and what a run on ranks reports."""

import json
import time

import pytest

torch = pytest.importorskip("torch")

from grace_moe.runtime.job.generation import GenerationOptions
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.launch import run_local
from grace_moe.runtime.profiling import PHASES, WAITING, Profiler, Span, chrome_trace, phase_times

from .conftest import EXPERTS, LAYERS, TOP_K, placement_of, requests_of, scattered_with_replicas

pytestmark = pytest.mark.usefixtures("warm")


def span(phase, milliseconds, start=0, step=0):
    return Span(phase=phase, layer_id=3, step=step, start_ns=start, duration_ns=int(milliseconds * 1e6), counts={"pairs": 5})


def test_phase_times_by_hand():
    """Two ranks: compute 1 and 3 ms in two steps, dispatch in two parts of 1 ms on the first rank only: 8 of 10 ms in compute."""
    ranks = [
        [span("compute", 1), span("compute", 1, step=1), span("dispatch", 1), span("dispatch", 1)],
        [span("compute", 3), span("compute", 3, step=1)],
    ]
    times = {t.phase: t for t in phase_times(ranks)}
    assert (times["compute"].mean_ms, times["compute"].slowest_rank_ms, times["compute"].share) == (2.0, 3.0, 0.8)
    assert (times["dispatch"].mean_ms, times["dispatch"].slowest_rank_ms, times["dispatch"].share) == (1.0, 2.0, 0.2)
    assert times["routing"].share == 0


def test_waiting_by_hand():
    """Rank 0 comes 2 ms before rank 1 to a dispatch of 5 and 3 ms: it waits 2 of the 5. To the second part it comes 9 ms early, and
    waits for no more than the part's 1 ms. Compute waits for nobody."""
    ms = 1_000_000
    ranks = [
        [span("dispatch", 5, start=0), span("dispatch", 1, start=6 * ms), span("compute", 4, start=7 * ms)],
        [span("dispatch", 3, start=2 * ms), span("dispatch", 1, start=15 * ms), span("compute", 1, start=16 * ms)],
    ]
    times = {t.phase: t for t in phase_times(ranks)}
    assert (times[WAITING].mean_ms, times[WAITING].slowest_rank_ms, times[WAITING].share) == (1.5, 3.0, 3 / 15)
    assert (times["dispatch"].mean_ms, times["dispatch"].slowest_rank_ms) == (3.5, 4.0)
    assert times["compute"].mean_ms == 2.5
    assert sum(t.share for t in times.values()) == pytest.approx(1)


def test_nothing_timed():
    assert [t.mean_ms for t in phase_times([])] == [0.0] * (len(PHASES) + 1)


def test_chrome_trace_by_hand():
    events = json.loads(chrome_trace({"run": [[span("compute", 2, start=1_000)]]}))["traceEvents"]
    (event,) = (e for e in events if e["ph"] == "X")
    assert (event["name"], event["ts"], event["dur"], event["tid"]) == ("compute", 1.0, 2000.0, 0)
    assert event["args"] == {"layer": 3, "step": 0, "pairs": 5}


def test_a_profiler_notes_what_was_counted():
    profiler = Profiler(step=4)
    before = time.perf_counter_ns()
    with profiler.timed("compute", 1) as counts:
        counts["pairs"] = 2
    after = time.perf_counter_ns()
    (noted,) = profiler.spans
    assert (noted.phase, noted.layer_id, noted.step, noted.counts) == ("compute", 1, 4, {"pairs": 2})
    assert before <= profiler.began_ns + noted.start_ns <= profiler.began_ns + noted.start_ns + noted.duration_ns <= after


@pytest.mark.ranks
def test_profile_of_four_ranks_adds_up(tiny_model, tmp_path):
    """Every pair is computed once, spans name every layer and pass, and their bytes are the run's own."""
    placement_of("2x2", scattered_with_replicas(4)).save(tmp_path / "plan.json")
    requests = requests_of([7, 3, 5])
    runs = (RunSpec(name="profiled", placement=str(tmp_path / "plan.json"), dispatch="hierarchical"),)
    options = GenerationOptions(new_tokens=3, batch_size=4, stop_at_eos=False)
    (result,) = run_local(Job(model=str(tiny_model), requests=requests, options=options, runs=runs, profile=True), 4)
    assert len(result.spans) == 4
    for spans in result.spans:
        assert [s.phase for s in spans] == list(PHASES) * LAYERS * result.passes
        assert [s.step for s in spans] == sorted(s.step for s in spans)
        assert {s.step for s in spans} == set(range(result.passes))
    every = [s for spans in result.spans for s in spans]
    assert sum(s.counts.get("pairs", 0) for s in every) == result.tokens * TOP_K * LAYERS
    assert sum(s.counts.get("cross_node_bytes", 0) for s in every) == result.cross_node_bytes
    assert sum(s.counts.get("intra_node_bytes", 0) for s in every) == result.intra_node_bytes


@pytest.mark.ranks
def test_profile_of_overlapped_stages_adds_up(tiny_model, tmp_path):
    """In a large prefill dispatch, compute and combine take turns: pairs, bytes and active experts still add up."""
    placement_of("2x2", scattered_with_replicas(4)).save(tmp_path / "plan.json")
    runs = (RunSpec(name="profiled", placement=str(tmp_path / "plan.json"), dispatch="hierarchical"),)
    options = GenerationOptions(new_tokens=1, batch_size=13, stop_at_eos=False)
    (result,) = run_local(Job(model=str(tiny_model), requests=requests_of([60] * 50), options=options, runs=runs, profile=True), 4)
    turns = ["routing", "dispatch", "dispatch", "compute", "dispatch", "compute", "combine", "compute", "combine"]
    for rank, spans in enumerate(result.spans):
        assert [s.phase for s in spans] == turns * LAYERS
        held = sum(rank in scattered_with_replicas(4)(e) for e in range(EXPERTS))
        for layer in range(LAYERS):
            assert 0 < sum(s.counts.get("active_experts", 0) for s in spans if s.layer_id == layer) <= held
    every = [s for spans in result.spans for s in spans]
    assert sum(s.counts.get("pairs", 0) for s in every) == result.tokens * TOP_K * LAYERS == 50 * 60 * TOP_K * LAYERS
    assert sum(s.counts.get("cross_node_bytes", 0) for s in every) == result.cross_node_bytes
    assert sum(s.counts.get("intra_node_bytes", 0) for s in every) == result.intra_node_bytes
