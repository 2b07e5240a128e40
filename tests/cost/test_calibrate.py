"""Tables that were made by known kernels: calibrate finds them again, whatever else is in the file, and names rows that are wrong."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from grace_moe.cost.calibrate import calibrate
from grace_moe.cost.calibration import Calibration
from grace_moe.cost.compute import ExpertKernel
from grace_moe.cost.exchange import DIRECTIONS, TransportKernel, uniform_exchange
from grace_moe.cost.expert_loads import skewed_load, uniform_load
from grace_moe.cost.hardware import hardware_of
from grace_moe.cost.kernel_fit import ComputeRows, predict
from grace_moe.cost.profile import fit_profile, read_profile
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.tables import read_table
from grace_moe.errors import InputFileError, TopologyError, UsageError
from grace_moe.topology import Topology

LOW = TransportKernel(
    backend="deepep_low_latency", direction="dispatch", coefficients={"call": 1e-5, "near_pair_element": 3e-12, "far_pair_element": 2e-11}
)


def write(path, rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def low_latency_rows(system="x1", **changes) -> list[dict]:
    rows = []
    for nodes in (1, 2, 4):
        for tokens in (1, 8, 64, 256, 1024):
            for hidden in (2048, 7168):
                numbers = {"tokens": tokens, "top_k": 8, "experts": 64, "hidden": hidden, "nodes": nodes, "devices_per_node": 8, "sms": 1}
                exchange = uniform_exchange(**{name: np.array([float(value)]) for name, value in numbers.items()})
                seconds = float(LOW.seconds(exchange)[0])
                row = {"system": system, "node_num": nodes, "hidden_size": hidden, "num_token": tokens, "num_topk": 8, "num_experts": 64}
                rows.append(row | {"dispatch_avg_t_us": seconds * 1e6, "combine_avg_t_us": seconds * 2e6} | changes)
    return rows


def test_transports_are_found_again(tmp_path):
    path = tmp_path / "low.csv"
    write(path, [*low_latency_rows("x1"), *low_latency_rows("y2")])
    found = calibrate([read_table(path)])
    assert found.machines == ("x1", "y2")
    assert [fit["what"] for fit in found.calibration.fits] == ["dispatch, x1", "combine, x1", "dispatch, y2", "combine, y2"]
    for fit in found.calibration.fits:
        assert fit["points"] == 30
        assert fit["median_error"] < 1e-3
        assert fit["left_out"]["median_error"] < 0.05
    kernel = found.calibration.transports[0]
    assert kernel.nodes == (1, 2, 4)
    assert kernel.coefficients["far_pair_element"] == pytest.approx(2e-11, rel=0.02)


def test_a_link_inside_nodes_is_at_most_as_slow_as_by_its_bandwidth(tmp_path):
    """Where no node is alone, pairs inside are few: what they cost is not left to chance."""
    path = tmp_path / "low.csv"
    write(path, [row for row in low_latency_rows() if row["node_num"] > 1])
    coefficients = calibrate([read_table(path)]).calibration.transports[0].coefficients
    share = LOW.far_bytes_per_s / LOW.near_bytes_per_s
    assert coefficients["near_pair_element"] >= share * coefficients["far_pair_element"] * 0.999


HIGH = TransportKernel(
    backend="deepep_high_throughput",
    direction="dispatch",
    coefficients={"call": 3e-5, "copy_sm": 4e-7, "relayed_element_sm": 7e-11, "far_element": 2.1e-11},
    nodes=(1, 2, 4),
)


def high_throughput_rows() -> list[dict]:
    rows = []
    for nodes in HIGH.nodes:
        for tokens in (1, 64, 1024, 8192, 65536):
            for sms in (4, 8, 16, 24):
                numbers = {"tokens": tokens, "top_k": 8, "experts": 256, "hidden": 7168, "nodes": nodes, "devices_per_node": 8, "sms": sms}
                exchange = uniform_exchange(**{name: np.array([float(value)]) for name, value in numbers.items()})
                seconds = float(HIGH.seconds(exchange)[0]) * 1e6
                row = {"system": "x1", "node_num": nodes, "hidden_size": 7168, "num_token": tokens, "num_topk": 8, "num_experts": 256}
                times = {f"{direction}_transmit_us": seconds for direction in DIRECTIONS}
                rows.append(row | times | {f"{direction}_sms": sms for direction in DIRECTIONS})
    return rows


def test_what_works_at_once_is_found_again(tmp_path):
    path = tmp_path / "high.csv"
    write(path, high_throughput_rows())
    found = calibrate([read_table(path)]).calibration
    assert found.fits[0]["p95_error"] < 0.01
    assert found.fits[0]["left_out"]["median_error"] < 0.1
    assert found.transports[0].coefficients["far_element"] == pytest.approx(2.1e-11, rel=0.02)


def test_a_link_that_no_row_tells_of_keeps_its_bandwidth(tmp_path):
    path = tmp_path / "high.csv"
    write(path, [row for row in high_throughput_rows() if row["dispatch_sms"] == 4 and row["num_token"] <= 64])
    kernel = calibrate([read_table(path)]).calibration.transports[0]
    assert kernel.coefficients["far_element"] == pytest.approx(1 / kernel.far_bytes_per_s)


def test_the_slower_of_sms_and_links_counts():
    numbers = {"tokens": 8192, "top_k": 8, "experts": 256, "hidden": 7168, "nodes": 4, "devices_per_node": 8}
    few, many, more = (
        float(HIGH.seconds(uniform_exchange(**{name: np.array([float(v)]) for name, v in (numbers | {"sms": sms}).items()}))[0])
        for sms in (4, 24, 48)
    )
    assert few > many == more  # with 24 SMs the link between nodes is what takes long


@pytest.mark.parametrize(
    ("machine", "hardware"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("gb200_nvl72", "gb200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("CPU", None),
    ],
)
def test_a_machine_is_known_by_the_name_that_its_driver_gives_it(tmp_path, machine, hardware):
    path = tmp_path / "low.csv"
    write(path, low_latency_rows(machine))
    stored, _ = calibrate([read_table(path)]).onto(Topology.parse("2x8"))
    assert stored.hardware == hardware


def test_a_machine_is_stored_and_read_again(tmp_path):
    path = tmp_path / "low.csv"
    write(path, [*low_latency_rows("x1"), *low_latency_rows("h200_sxm")])
    found = calibrate([read_table(path)])
    stored, chosen = found.onto(Topology.parse("2x8:h200-400g"))
    assert chosen == "h200_sxm"
    stored.save(tmp_path / "t.json")
    again = Topology.parse(str(tmp_path / "t.json"))
    assert again == replace(stored, source=again.source)
    calibration = hardware_of(again).calibration
    assert {kernel.machine for kernel in calibration.transports} == {"h200_sxm"}
    assert {kernel.direction for kernel in calibration.transports} == set(DIRECTIONS)
    assert calibration.compute == hardware_of(Topology.parse("2x8:h200-400g")).calibration.compute  # of what was not measured, the preset's
    assert found.onto(Topology.parse("2x8"), "x1")[1] == "x1"
    with pytest.raises(UsageError, match="--machine: 'z' is not in the tables; they have h200_sxm, x1"):
        found.onto(Topology.parse("2x8"), "z")


KERNEL = ExpertKernel(phase="decode", launch_s=2e-5, floor_s=0.0, byte_s=3e-13, flop_s=1e-15)


def expert_rows() -> list[dict]:
    rows = []
    model = ModelSizes(num_experts=64, top_k=8, hidden_size=1024, expert_size=512, weight_bytes=1.0)
    for ranks in (4, 16):
        for tokens in (16, 256, 4096, 65_536):
            for distribution in ("uniform", "power_law_1.01", "power_law_1.01_eplb"):
                if distribution == "uniform":
                    load = uniform_load(tokens * 8 / ranks, 64 // ranks, "decode")
                else:
                    load = skewed_load(tokens, 8, 64, ranks, 1.01, 64 if distribution.endswith("eplb") else None)
                seconds = predict(KERNEL, ComputeRows(seconds=np.ones(1), models=[model], loads=[load]))[0]
                sizes = {"hidden_size": 1024, "inter_size": 512, "topk": 8, "num_experts": 64, "moe_ep_size": ranks}
                rows.append(
                    {"op_name": "moe_generation", "moe_dtype": "fp8", "num_tokens": tokens}
                    | sizes
                    | {"distribution": distribution, "latency": seconds * 1e3}
                )
    return rows


def test_expert_kernels_are_found_again(tmp_path):
    path = tmp_path / "experts.csv"
    write(path, expert_rows())
    found = calibrate([read_table(path)]).calibration
    times, ratios = found.fits
    assert times["median_error"] < 0.01
    assert ratios["what"].endswith("skewed over even")
    assert ratios["median_error"] < 0.02
    kernel = found.compute[0]
    assert kernel.byte_s == pytest.approx(KERNEL.byte_s, rel=0.1)
    assert kernel.flop_s == pytest.approx(KERNEL.flop_s, rel=0.1)
    assert (kernel.phase, kernel.machine) == ("decode", "unnamed")


WRONG = [
    ({"num_token": "many"}, "line 2, num_token: 'many' is not a number of at least 1; correct the row, or leave it out"),
    ({"num_token": 2.5}, "line 2, num_token: 2.5 is not a whole number"),
    ({"dispatch_avg_t_us": 0}, "line 2, dispatch_avg_t_us: '0' is not a positive number"),
    ({"combine_avg_t_us": "nan"}, "line 2, combine_avg_t_us: 'nan' is not a positive number"),
    ({"hidden_size": ""}, "line 2, hidden_size: '' is not a number of at least 1"),
]


@pytest.mark.parametrize(("change", "text"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_a_wrong_row_is_named(tmp_path, change, text):
    path = tmp_path / "low.csv"
    rows = low_latency_rows()
    write(path, [rows[0] | change, *rows[1:]])
    with pytest.raises(InputFileError) as error:
        calibrate([read_table(path)])
    assert str(error.value).startswith(f"{path}: {text}")


def test_wrong_experts_are_named(tmp_path):
    path = tmp_path / "experts.csv"
    rows = expert_rows()
    for change, text in (
        ({"moe_ep_size": 5}, "line 2, moe_ep_size: 64 experts in 64 slots don't go on 5 ranks"),
        ({"distribution": "zipf"}, "line 2, distribution: 'zipf' is neither uniform nor power_law_A nor power_law_A_eplb"),
    ):
        write(path, [rows[0] | change, *rows[1:]])
        with pytest.raises(InputFileError, match=text):
            calibrate([read_table(path)])


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.csv"
    for text, problem in (
        ("", "the columns of no table that is known"),
        ("a,b\n1,2\n", "the columns of no table that is known"),
        ("op_name,num_gpus,message_size,latency\n", "rows: none"),
        ("op_name,num_gpus,message_size,latency\nalltoall,2,1\n", "line 2: 3 cells, and the header has 4"),
    ):
        path.write_text(text)
        with pytest.raises(InputFileError, match=problem):
            read_table(path)


def test_a_collective_gives_the_link(tmp_path):
    path = tmp_path / "nccl.csv"
    sizes = [2**power for power in range(8, 30, 2)]
    rows = [
        {
            "op_name": "alltoall",
            "nccl_dtype": "int8",
            "num_gpus": gpus,
            "message_size": size,
            "latency": 1e3 * (1e-5 + size * (gpus - 1) / gpus / 2e11),
        }
        for size in sizes
        for gpus in (2, 8)
    ]
    write(path, rows)
    found = calibrate([read_table(path)])
    stored, chosen = found.onto(Topology.parse("2x8"))
    assert chosen == "unnamed"
    assert stored.intra_node.bandwidth_bytes_per_s == pytest.approx(2e11, rel=0.02)
    assert stored.cross_node == Topology.parse("2x8").cross_node


def profile_events() -> list[dict]:
    """Compute takes 10 us, 2 an expert and 0.1 a pair; an exchange 50 us and a byte a ns between nodes; rank 0 waits 30 us for rank 1."""
    events = []
    for step in range(8):
        for rank in range(2):
            pairs, experts, sent = 100 + 37 * step, 3 + step % 4, 1000 * (step + 1)
            span = {"ph": "X", "pid": 0, "tid": rank}
            counts = {"layer": 0, "step": step}
            computed = {"tokens": pairs, "pairs": pairs, "active_experts": experts}
            events.append(span | {"name": "compute", "ts": 1, "dur": 10 + 2 * experts + 0.1 * pairs, "args": counts | computed})
            exchanged = {"intra_node_bytes": 10, "cross_node_bytes": sent}
            late = 30 * rank
            events.append(span | {"name": "dispatch", "ts": 100 + late, "dur": 80 - late + sent * 1e-3, "args": counts | exchanged})
    return events


def test_a_profile_of_ours(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"traceEvents": profile_events()}))
    kernel, links, fits = fit_profile(read_profile(path))
    assert (kernel.launch_s, kernel.expert_s, kernel.pair_s) == pytest.approx((10e-6, 2e-6, 0.1e-6), rel=1e-3)
    assert links["cross_node"].bandwidth_bytes_per_s == pytest.approx(1e9, rel=0.01)
    assert all(fit.error.median < 1e-6 for fit in fits)
    path.write_text(json.dumps({"traceEvents": [event | {"dur": "long"} for event in profile_events()]}))
    with pytest.raises(InputFileError, match=r"traceEvents\[0\]\.dur: missing, or not a number"):
        read_profile(path)
    path.write_text("{}")
    with pytest.raises(InputFileError, match="traceEvents: missing; give the file that grace-moe run --profile wrote"):
        read_profile(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"compute": 3}, "calibration.compute: not a list of objects"),
        ({"compute": [{"phase": "decode"}]}, r"calibration.compute\[0\]\.launch_s: missing"),
        ({"compute": [{"phase": "decode", "launch_s": -1}]}, r"calibration.compute\[0\]\.launch_s: unknown, or not"),
        ({"compute": [{"speed": 1}]}, r"calibration.compute\[0\]\.speed: unknown"),
        ({"transports": [{"backend": "pplx"}]}, r"calibration.transports\[0\]: no backend"),
        ({"transports": [LOW.to_dict() | {"coefficients": {"call": "1"}}]}, r"coefficients\.call: not a feature"),
        ({"transports": [LOW.to_dict() | {"nodes": [0]}]}, r"nodes: not a list of numbers of nodes"),
    ],
)
def test_a_calibration_that_cant_be_read(value, text):
    with pytest.raises(TopologyError, match=text):
        Calibration.from_dict(value, "t.json")
