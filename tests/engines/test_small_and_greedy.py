"""Small files that asked for much, each made here as it was found: one line, before the memory is taken."""

import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from grace_moe.engines import TRACE_IMPORTERS, Hints
from grace_moe.errors import GraceError
from grace_moe.trace import RoutingTrace

HINTS = Hints(num_experts=8, top_k=1)


def loads_that_wrap(folder):
    """324 bytes: the sum of these counts wraps in 64 bits, and NumPy wrote beyond the array."""
    np.savez(folder / "a.npz", expert_load=np.full((1, 4), 2**62))
    return "npz", folder / "a.npz", "expert_load: a count of 4611686018427387904 is over the limit"


def statistics_that_wrap(folder):
    (folder / "s").mkdir()
    (folder / "s" / "meta_info.json").write_text(json.dumps({"num_experts": 4}))
    save_file({"0_1": np.full(4, 2**62)}, folder / "s" / "rank0.safetensors")
    return "tensorrt-llm", folder / "s", "layer 1: a count of 4611686018427387904 is over the limit"


def loads_of_many_layers(folder):
    """424 bytes asked for 22 GiB."""
    np.savez_compressed(folder / "a.npz", expert_load=np.ones((100_000, 1), np.uint8))
    return "npz", folder / "a.npz", r"expert_load: shape \(100000, 1\)"


def tokens_of_many_layers(folder):
    np.savez_compressed(folder / "a.npz", topk_ids=np.zeros((1, 100_000, 1), np.int8), num_experts=8)
    return "npz", folder / "a.npz", "layers?"


def csv_of_many_batches(folder):
    """110 kB took 2.8 GB: each two rows are a batch, as deep as its last layer."""
    (folder / "a.csv").write_text("0,1\n9999,1\n" * 3_000)
    return "llama.cpp", folder / "a.csv", ""


def csv_of_many_layers_and_batches(folder):
    rows = "".join(f"{layer},1\n" for layer in range(9_999, -1, -1))
    (folder / "a.csv").write_text(rows)
    return "llama.cpp", folder / "a.csv", "tokens x layers: asks for"


def layer_numbers_that_no_loader_takes(folder):
    np.savez(folder / "a.npz", topk_ids=np.zeros((2, 2, 1), int), layer_ids=np.array([-5, 2**40]), num_experts=8)
    return "npz", folder / "a.npz", r"layer_ids: .*are not in 0\.\.99999"


def phases_beyond_a_byte(folder):
    np.savez(folder / "a.npz", topk_ids=np.zeros((2, 1, 1), int), phase=np.array([256, 257]), num_experts=8)
    return "npz", folder / "a.npz", r"phase: 257 is not in 0\.\.255"


@pytest.mark.parametrize(
    "made",
    [
        loads_that_wrap,
        statistics_that_wrap,
        loads_of_many_layers,
        tokens_of_many_layers,
        csv_of_many_batches,
        csv_of_many_layers_and_batches,
        layer_numbers_that_no_loader_takes,
        phases_beyond_a_byte,
    ],
)
def test_it_is_refused_in_a_line_and_takes_little_memory(tmp_path, made):
    engine, path, says = made(tmp_path)
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir()))
    problem = ""
    tracemalloc.start()
    try:
        TRACE_IMPORTERS[engine]([path], HINTS)
    except GraceError as error:
        problem = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**26 + 20 * size
    if says:
        with pytest.raises(GraceError, match=says):
            TRACE_IMPORTERS[engine]([path], HINTS)
        assert len(problem.splitlines()) == 1


def test_requests_of_64_bits_stay_apart(tmp_path):
    """Narrowed to 32 bits, 0 and 2^32 were one request."""
    ids = np.arange(6).reshape(3, 2, 1)
    np.savez(tmp_path / "a.npz", topk_ids=ids, num_experts=8, request_ids=np.array([0, 2**32, 0]))
    trace = TRACE_IMPORTERS["npz"]([tmp_path / "a.npz"], Hints()).trace
    assert len(set(trace.requests.tolist())) == 2
    trace.save(tmp_path / "t.safetensors")
    assert RoutingTrace.load(tmp_path / "t.safetensors").digest == trace.digest
