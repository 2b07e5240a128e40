"""What a model's router chose: the trace, its file and its statistics."""

from grace_moe.trace.counts import whole_loads
from grace_moe.trace.joining import concatenate, mixed
from grace_moe.trace.load_profile import LoadProfile
from grace_moe.trace.model import DECODE, PREFILL, RoutingTrace
from grace_moe.trace.prompts import RecordingSizes, prompts_from_text
from grace_moe.trace.reading import mixed_recordings, read_recording
from grace_moe.trace.recorded import without_unrecorded
from grace_moe.trace.requests import order_of_names, order_of_requests, request_numbers, tokens_of
from grace_moe.trace.statistics import activations, expert_loads, skew
from grace_moe.trace.synthetic import synthetic_trace

__all__ = [
    "DECODE",
    "PREFILL",
    "LoadProfile",
    "RecordingSizes",
    "RoutingTrace",
    "activations",
    "concatenate",
    "expert_loads",
    "mixed",
    "mixed_recordings",
    "order_of_names",
    "order_of_requests",
    "prompts_from_text",
    "read_recording",
    "request_numbers",
    "skew",
    "synthetic_trace",
    "tokens_of",
    "whole_loads",
    "without_unrecorded",
]
