"""The trace file: round trips, stable bytes, and every kind of bad file."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from grace_moe.errors import GraceError, TraceError
from grace_moe.trace import RoutingTrace, expert_loads, synthetic_trace

TRACE = synthetic_trace(tokens=40, layers=2, experts=8, top_k=3)
METADATA = {"format": "grace-moe.trace", "version": "1", "num_experts": "8", "model": "m", "dataset": "d", "layer_ids": "[0, 4]"}
IDS = np.ascontiguousarray(TRACE.topk_ids)


@st.composite
def traces(draw):
    tokens, layers, experts = draw(st.integers(0, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    k = draw(st.integers(1, experts))
    choice = st.permutations(range(experts)).map(lambda p: p[:k])
    ids = np.array([[draw(choice) for _ in range(layers)] for _ in range(tokens)], dtype=draw(st.sampled_from([np.int16, np.int32])))
    ids = ids.reshape(tokens, layers, k)
    ids[draw(hnp.arrays(bool, ids.shape))] = -1
    maybe = st.booleans()
    text = st.text(st.characters(codec="utf-8"), max_size=12)
    return RoutingTrace(
        topk_ids=ids,
        num_experts=experts,
        layer_ids=tuple(draw(st.lists(st.integers(0, 99_999), min_size=layers, max_size=layers, unique=True))),
        model=draw(text),
        dataset=draw(text),
        request_ids=draw(hnp.arrays(np.int32, tokens)) if draw(maybe) else None,
        phase=draw(hnp.arrays(np.uint8, tokens, elements=st.integers(0, 1))) if draw(maybe) else None,
        topk_weights=draw(hnp.arrays(np.float16, ids.shape, elements=st.floats(0, 1, width=16))) if draw(maybe) else None,
        token_ids=draw(hnp.arrays(np.int32, tokens, elements=st.integers(0, 2**31 - 1))) if draw(maybe) else None,
    )


def assert_same(one: RoutingTrace, two: RoutingTrace) -> None:
    for name in ("topk_ids", "request_ids", "phase", "topk_weights", "token_ids"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            assert np.array_equal(a, b), name
    for name in ("num_experts", "layer_ids", "model", "dataset", "digest"):
        assert getattr(one, name) == getattr(two, name), name


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(trace=traces())
def test_round_trip(tmp_path, trace):
    trace.save(tmp_path / "t.safetensors")
    assert_same(RoutingTrace.load(tmp_path / "t.safetensors"), trace)


def test_the_same_trace_has_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        synthetic_trace(tokens=40, layers=2, experts=8, top_k=3).save(tmp_path / name)
    RoutingTrace.load(tmp_path / "a").save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_view_is_saved_as_what_it_shows(tmp_path):
    reversed_tokens = TRACE.select(np.arange(TRACE.num_tokens)[::-1])
    reversed_tokens.save(tmp_path / "t")
    assert_same(RoutingTrace.load(tmp_path / "t"), reversed_tokens)


def refused(path) -> str:
    """The one line of the TraceError, after the path."""
    with pytest.raises(TraceError) as error:
        RoutingTrace.load(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    assert "; " in text
    assert error.value.exit_code == 3
    return text.removeprefix(f"{path}: ")


BAD_TENSORS = {
    "expert id 8 is not in -1..7": {"topk_ids": np.full((3, 2, 1), 8, np.int16)},
    "expert id -2 is not in -1..7": {"topk_ids": np.full((3, 2, 1), -2, np.int32)},
    "names an expert twice in layer 0": {"topk_ids": np.zeros((3, 2, 2), np.int16)},
    "topk_ids: dtype I64 is not I16 or I32": {"topk_ids": IDS.astype(np.int64)},
    "topk_ids: dtype F32 is not I16 or I32": {"topk_ids": IDS.astype(np.float32)},
    "topk_ids: int16 (40, 6) is not": {"topk_ids": IDS.reshape(40, 6)},
    "topk_ids: missing": {"phase": np.zeros(3, np.uint8)},
    "layer_ids: 2 numbers for 1 layers": {"topk_ids": np.zeros((3, 1, 1), np.int16)},
    "extra: unknown tensor": {"topk_ids": IDS, "extra": np.zeros(3, np.int16)},
    "request_ids: dtype I64 is not I32": {"topk_ids": IDS, "request_ids": np.zeros(40, np.int64)},
    "request_ids: int32 (39,) is not int32 (40,)": {"topk_ids": IDS, "request_ids": np.zeros(39, np.int32)},
    "token_ids: dtype I64 is not I32": {"topk_ids": IDS, "token_ids": np.zeros(40, np.int64)},
    "token_ids: int32 (39,) is not int32 (40,)": {"topk_ids": IDS, "token_ids": np.zeros(39, np.int32)},
    "token_ids: -1 is not in any vocabulary": {"topk_ids": IDS, "token_ids": np.full(40, -1, np.int32)},
    "phase: value 7": {"topk_ids": IDS, "phase": np.full(40, 7, np.uint8)},
    "phase: dtype BOOL is not U8": {"topk_ids": IDS, "phase": np.zeros(40, bool)},
    "topk_weights: dtype F32 is not F16": {"topk_ids": IDS, "topk_weights": np.zeros(IDS.shape, np.float32)},
    "topk_weights: not all are finite": {"topk_ids": IDS, "topk_weights": np.full(IDS.shape, np.inf, np.float16)},
    "has no layers or no choices": {"topk_ids": np.zeros((3, 0, 2), np.int16)},
}


@pytest.mark.parametrize("text", BAD_TENSORS)
def test_bad_tensors_are_named(tmp_path, text):
    path = tmp_path / "t.safetensors"
    path.write_bytes(save(BAD_TENSORS[text], metadata=METADATA))
    assert text in refused(path)


BAD_METADATA = [
    ("format", None, "format: 'none' is not 'grace-moe.trace'; give a trace that `grace-moe record` or `import` wrote"),
    ("format", "grace-moe.placement", "format: 'grace-moe.placement' is not 'grace-moe.trace'"),
    ("version", "2", "version: 2 is newer than 1; upgrade grace-moe"),
    ("version", "0", "version: 0 never was"),
    ("version", "one", "version: missing or not a whole number"),
    ("version", None, "version: missing or not a whole number"),
    ("version", "9" * 6000, "version: missing or not a whole number"),
    ("num_experts", None, "num_experts: missing or not a whole number"),
    ("num_experts", "8.0", "num_experts: missing or not a whole number"),
    ("num_experts", "-8", "num_experts: -8 is not in 1..32767"),
    ("num_experts", "7", "topk_ids: expert id 7 is not in -1..6"),
    ("num_experts", "9" * 4000, "num_experts: 999"),
    ("layer_ids", None, "layer_ids: missing or not a JSON list"),
    ("layer_ids", "[0, 4", "layer_ids: missing or not a JSON list"),
    ("layer_ids", "[" * 100_000, "layer_ids: missing or not a JSON list"),
    ("layer_ids", '{"0": 4}', "layer_ids: not a list of layer numbers"),
    ("layer_ids", "[0, true]", "layer_ids: not a list of layer numbers"),
    ("layer_ids", "[0, -1]", "layer_ids: not a list of layer numbers"),
    ("layer_ids", "[0, 1e0]", "layer_ids: not a list of layer numbers"),
    ("layer_ids", "[0, NaN]", "layer_ids: not a list of layer numbers"),
    ("layer_ids", "[0, 0]", "layer_ids: 2 numbers for 2 layers; name each layer once"),
    ("layer_ids", "[0]", "layer_ids: 1 numbers for 2 layers; name each layer once"),
]


@pytest.mark.parametrize(("field", "value", "text"), BAD_METADATA)
def test_bad_metadata_is_named(tmp_path, field, value, text):
    path = tmp_path / "t.safetensors"
    metadata = {name: old for name, old in (METADATA | {field: value}).items() if old is not None}
    path.write_bytes(save({"topk_ids": IDS}, metadata=metadata))
    assert refused(path).startswith(text)


def test_a_small_file_of_many_layers_and_experts_is_refused_before_anything_is_counted(tmp_path):
    """A token of 10,000 layers and 32,767 experts: their loads would take 2.4 GiB."""
    path = tmp_path / "t.safetensors"
    metadata = METADATA | {"num_experts": "32767", "layer_ids": json.dumps(list(range(10_000)))}
    path.write_bytes(save({"topk_ids": np.zeros((1, 10_000, 1), np.int16)}, metadata=metadata))
    assert refused(path).startswith("num_experts x layers: asks for 2,499 MiB of memory")
    path.write_bytes(save({"topk_ids": np.zeros((1, 10_001, 1), np.int16)}, metadata=metadata | {"layer_ids": str(list(range(10_001)))}))
    assert refused(path) == "layer_ids: over the limit of 10000 layers; is it the right file?"


def test_a_long_trace_is_loaded_and_looked_through_in_little_more_memory_than_its_own(tmp_path):
    path = tmp_path / "t.safetensors"
    ids = np.tile(np.arange(8, dtype=np.int16), (300_000, 4, 1))
    RoutingTrace(topk_ids=ids, num_experts=64, layer_ids=(0, 1, 2, 3), request_ids=np.arange(300_000, dtype=np.int32)).save(path)
    del ids
    tracemalloc.start()
    try:
        trace = RoutingTrace.load(path)
        assert expert_loads(trace).sum() == trace.topk_ids.size
        assert len(trace.digest) == 16
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * path.stat().st_size + 2**25


def test_model_and_dataset_may_be_missing_or_long(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(save({"topk_ids": IDS}, metadata={n: METADATA[n] for n in ("format", "version", "num_experts", "layer_ids")}))
    assert RoutingTrace.load(path).model == ""
    path.write_bytes(save({"topk_ids": IDS}, metadata=METADATA | {"model": "x" * 100_000}))
    assert len(RoutingTrace.load(path).model) == 100_000


def test_a_hostile_tensor_name_stays_on_one_short_line(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(save({"topk_ids": IDS, "a\n\x1b[31m" + "b" * 10_000: np.zeros(1)}, metadata=METADATA))
    text = refused(path)
    assert "\x1b" not in text
    assert len(text) < 1000


def test_missing_file_folder_and_null_character(tmp_path):
    assert refused(tmp_path / "none.safetensors") == "file: no such file; check the path"
    assert refused(tmp_path).startswith("file: ")
    with pytest.raises(TraceError):
        RoutingTrace.load(tmp_path / "nu\0ll")


def test_every_truncation_is_refused(tmp_path):
    TRACE.save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "t.safetensors"
    for size in [*range(0, 24), *range(24, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert "it may be truncated: copy or record it again" in refused(path), size


def safetensors_with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 100,
        (2**63).to_bytes(8, "little") + b"{}",
        safetensors_with_header(b"[" * 5000),
        safetensors_with_header(b'{"__metadata__": {"format": 1}}'),
        safetensors_with_header(b'{"__metadata__": ["format"]}'),
        safetensors_with_header(b'{"topk_ids": {"dtype": "I16", "shape": [-1], "data_offsets": [0, 2]}}', b"ab"),
        safetensors_with_header(b'{"topk_ids": {"dtype": "I16", "shape": [1], "data_offsets": [0, 200]}}', b"ab"),
        b"PK\x03\x04" + b"\0" * 60,
        b"\x80\x04\x95" + b"\0" * 60,
    ],
)
def test_other_bytes_are_refused(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    refused(path)


def test_a_header_of_endless_tokens_without_data_is_refused_at_once(tmp_path):
    """A shape with a zero passes safetensors' own size check, whatever the other numbers are."""
    entry = {"dtype": "I16", "shape": [10**15, 0, 2], "data_offsets": [0, 0]}
    header = json.dumps({"__metadata__": METADATA | {"layer_ids": "[]"}, "topk_ids": entry}).encode()
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_with_header(header))
    refused(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.binary(max_size=200).map(safetensors_with_header))
def test_random_bytes_give_errors_of_ours_only(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(TraceError):
        RoutingTrace.load(path)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_loads_or_gives_an_error_of_ours(tmp_path, data):
    """One to three bytes of a whole file changed, most in its header."""
    TRACE.save(tmp_path / "t")
    content = bytearray((tmp_path / "t").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 450) | st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "t").write_bytes(bytes(content))
    try:
        RoutingTrace.load(tmp_path / "t")
        problem = None
    except GraceError as error:
        problem = str(error)
    assert problem is None or (len(problem.splitlines()) == 1 and len(problem) < 2000)
