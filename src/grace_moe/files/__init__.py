"""Reading with bounds and writing whole: every file of ours, and every file from outside, goes through here."""

from grace_moe.files.budget import BYTES_PER_BYTE, FREE_BYTES, budget_of, check_budget
from grace_moe.files.json_text import MAX_JSON_BYTES, dump_json, parse_json, read_json
from grace_moe.files.limits import MAX_COUNT, MAX_DEVICES, MAX_EXPERTS, MAX_LAYER_ID, MAX_LAYERS, MAX_TOKENS
from grace_moe.files.numbers import bounded_counts, narrow
from grace_moe.files.reading import open_regular, read_bytes, starts_with
from grace_moe.files.safetensors_header import check_safetensors
from grace_moe.files.writing import check_output, write_atomically

__all__ = [
    "BYTES_PER_BYTE",
    "FREE_BYTES",
    "MAX_COUNT",
    "MAX_DEVICES",
    "MAX_EXPERTS",
    "MAX_JSON_BYTES",
    "MAX_LAYERS",
    "MAX_LAYER_ID",
    "MAX_TOKENS",
    "bounded_counts",
    "budget_of",
    "check_budget",
    "check_output",
    "check_safetensors",
    "dump_json",
    "narrow",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_json",
    "starts_with",
    "write_atomically",
]
