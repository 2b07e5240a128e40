"""docs/planner.md: every number of the worked example, the steps that it names, and its table of constants."""

import ast
import re
from itertools import combinations, pairwise

import numpy as np
import pytest

from grace_moe import RoutingTrace, Topology, plan
from grace_moe.planning.constants import COPY_CAP, COPY_PRICE, IMBALANCE_PRICE
from grace_moe.planning.grace.by_load import floor_of
from grace_moe.planning.grace.canonical_names import canonical_names, device_order
from grace_moe.planning.grace.foresight import forecast
from grace_moe.planning.grace.layer_placement import place_layer
from grace_moe.planning.grace.options import GraceOptions
from grace_moe.planning.grace.problem import layer_problems
from grace_moe.planning.grace.tuning import plan_layers
from grace_moe.planning.grace.uncertainty import load_shares
from grace_moe.planning.task import PlanningTask
from tests.house import ROOT

PAGE = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
PLANNING = ROOT / "src" / "grace_moe" / "planning"
TOPOLOGY = Topology.parse("2x2")
ORDER = [(2, 0), (2, 4), (0, 4), (2, 0), (2, 4), (5, 1), (5, 3), (1, 3), (5, 1), (1, 3), (2, 1), (2, 1)]
REQUESTS = 8
TRACE = RoutingTrace(
    topk_ids=np.array(ORDER * REQUESTS, np.int16)[:, None],
    num_experts=6,
    layer_ids=(0,),
    request_ids=np.repeat(np.arange(REQUESTS, dtype=np.int32), len(ORDER)),
)
TASK = PlanningTask(recording=TRACE, topology=TOPOLOGY, slots_per_device=2)
NAMES = canonical_names(TRACE.topk_ids, 6, device_order(TOPOLOGY))
OPTIONS = GraceOptions(
    move_price=0.0,
    price=IMBALANCE_PRICE,
    tolerance=1.015,
    request_placement=False,
    decode="tokens",
    decode_copies=0.05,
    decode_load=0.1,
    decode_batch=64,
    effort=1.0,
    threads=1,
)
(PROBLEM,) = layer_problems(TASK, OPTIONS, NAMES)


def table(heading, column):
    """The rows below the table head that starts with `column`, in the section of that heading."""
    section = PAGE.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0].split("\n")
    first = next(index for index, line in enumerate(section) if line.startswith(f"| {column} |"))
    rows = [section[first], *section[first + 2 :]]
    rows = rows[: next(index for index, line in enumerate([*rows, ""]) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def numbers(cell):
    return tuple(int(part) for part in cell.split(","))


@pytest.fixture(scope="module")
def placed():
    return place_layer(PROBLEM, 1, None)


def node_with(contents, layer):
    """The node of the placement that holds the experts of a cell, and the devices on it."""
    for node in (0, 1):
        devices = TOPOLOGY.devices_of_node(node)
        held = {expert for expert, hosts in enumerate(layer.devices_of_expert) if set(hosts) & set(devices)}
        if held == set(numbers(contents)):
            return node
    raise AssertionError(contents)


def test_the_example_is_what_the_page_says():
    experts, tokens = table("## The example", "experts")
    counted = {numbers(pair): int(count) for pair, count in zip(experts[1:], tokens[1:], strict=True)}
    assert {pair: ORDER.count(pair) for pair in ORDER} == counted
    assert ", ".join(f"({a}, {b})" for a, b in ORDER) in PAGE.replace("\n", " ")


def test_step_3_names():
    expert, name = table("### Step 3: problems", "expert")
    assert NAMES[0].experts.tolist() == [int(e) for e in expert[1:]]
    assert [int(n) for n in name[1:]] == list(range(6))
    assert PROBLEM.unit.tolist() == np.repeat(np.arange(REQUESTS), len(ORDER)).tolist()


def test_step_5_floor():
    floor = floor_of(PROBLEM)
    devices = table("### Step 5: the floor of balance", "device")[1][1:]
    held = [numbers(cell) for cell in devices]
    assert floor.layer.devices_of_expert == tuple(tuple(d for d in range(4) if e in held[d]) for e in range(6))
    assert floor.origin == "eplb"


def test_step_6_loads():
    share, covariance = load_shares(PROBLEM.ids, PROBLEM.unit, 6)
    assert share.tolist() == [float(cell) for cell in table("### Step 6: loads and how far they stray", "name")[1][1:]]
    assert not covariance.any()


def objective(contents):
    """Copies, imbalance and heat of what two nodes hold, by the formulas of the page; nothing strays."""
    copies = []
    for row in PROBLEM.ids.tolist():
        serving = [nodes for nodes in ({0}, {1}, {0, 1}) if all(any(e in contents[n] for n in nodes) for e in row)]
        copies += [min(len(nodes | {source}) - 1 for nodes in serving) for source in (0, 1)]
    share, _ = load_shares(PROBLEM.ids, PROBLEM.unit, 6)
    held = np.array([sum(e in node for node in contents) for e in range(6)])
    loads = [sum(share[e] / held[e] for e in node) for node in contents]
    imbalance = sum((load / 0.5 - 1) ** 2 for load in loads)
    heat = (held * np.maximum(0, 4 * share / held - COPY_CAP) ** 2).sum()
    return float(np.mean(copies)), imbalance, float(heat)


def test_step_7_objective_of_the_contents_and_the_best_of_all(placed):
    rows = table("### Step 7: experts on nodes", "node")[1:]
    for here, there, *terms in rows:
        copies, imbalance, heat = objective((numbers(here), numbers(there)))
        total = copies + IMBALANCE_PRICE * imbalance + COPY_PRICE * heat
        assert (copies, imbalance, heat, total) == pytest.approx([float(term) for term in terms], abs=6e-5)
    every = [(a, b) for a in combinations(range(6), 4) for b in combinations(range(6), 4) if set(a) | set(b) == set(range(6))]
    best = min(every, key=lambda contents: np.dot(objective(contents), (1, IMBALANCE_PRICE, COPY_PRICE)))
    assert set(best) == {numbers(cell) for cell in rows[0][:2]} == {tuple(np.flatnonzero(row).tolist()) for row in placed[1]}


def test_steps_8_to_10_devices_and_weights(placed):
    layer, _ = placed
    assert layer.node_prices == ()
    here, there = table("### Step 7: experts on nodes", "node")[1][:2]
    packed = {frozenset(numbers(cell)) for cell in table("### Step 9: experts on devices", "device")[1][:2]} | {
        frozenset((0, 4)),
        frozenset((3, 5)),
    }
    held = [frozenset(e for e, hosts in enumerate(layer.devices_of_expert) if device in hosts) for device in range(4)]
    assert set(held) == packed
    assert {node_with(here, layer), node_with(there, layer)} == {0, 1}
    weights = table("### Step 10: the split", "name")[1][1:]
    assert layer.replica_weights == tuple(tuple(float(w) for w in cell.split(",")) for cell in weights)


def test_step_9_imbalance_of_the_packings():
    pairs = {0: 4, 1: 3, 2: 3, 4: 2}  # per request, on the node that holds them
    for device, other, loads, price in table("### Step 9: experts on devices", "device")[1:]:
        counted = [sum(pairs[e] for e in numbers(cell)) for cell in (device, other)]
        assert counted == list(numbers(loads))
        assert f"{100 * sum((load / 6 - 1) ** 2 for load in counted):.2f}" == price


def test_step_11_forecast(placed):
    ours, theirs = table("### Step 11: the forecast", "placement")[1:]
    for (_, copies, peak), found in ((ours, forecast(PROBLEM, placed[0], "search")), (theirs, floor_of(PROBLEM))):
        assert found.traffic == pytest.approx(float(copies), abs=0.005)
        assert found.peaks.mean() == pytest.approx(float(peak), abs=0.005)


def test_step_12_takes_ours_at_the_first_price(placed):
    (chosen,) = plan_layers([PROBLEM], 1.015, 1)
    assert chosen.origin == "search"
    assert chosen.layer == placed[0]


def test_steps_13_and_14_the_plan():
    layer = plan(TRACE, TOPOLOGY, slots_per_device=2).layers[0]
    name, here, there = (row[1:] for row in table("### Step 13: costs of sources", "name"))
    costs = np.array([[float(cell) for cell in row] for row in (here, there)]).T
    ours = np.array([layer.source_costs[NAMES[0].experts[int(n)]] for n in name])
    assert any((ours == costs[:, order]).all() for order in ([0, 1], [1, 0]))
    held = [tuple(e for e, hosts in enumerate(layer.devices_of_expert) if device in hosts) for device in range(4)]
    stated = [tuple(sorted(numbers(row[1]))) for row in table("### Step 14: original names", "device")[1:]]
    assert sorted([sorted(held[:2]), sorted(held[2:])]) == sorted([sorted(stated[:2]), sorted(stated[2:])])


def test_step_15_gives_nothing_up():
    planned = plan(TRACE, TOPOLOGY, slots_per_device=2, decode="experts")
    assert planned.layers == plan(TRACE, TOPOLOGY, slots_per_device=2).layers
    assert "decode experts has no effect: no replica can be given up within the bounds" in planned.provenance["notes"]


def test_the_code_has_the_steps_of_the_page():
    """Headings 1 to 15; each number stands in the code, in a comment or at the head of the module that is the step."""
    stated = [int(number) for number in re.findall(r"^### Step (\d+):", PAGE, re.MULTILINE)]
    code = "\n".join(path.read_text() for path in (PLANNING / "grace").rglob("*.py"))
    named = {int(number) for pair in re.findall(r"Steps? (\d+)(?: (?:to|and) (\d+))?[:,]", code) for number in pair if number}
    assert stated == list(range(1, 16)) == sorted(named | {7, 9, 12})


def test_rooms_that_the_page_names_exist():
    rooms = set(re.findall(r"`([\w/]+\.py|search/|decode/)`", PAGE.replace("`tests/", "")))
    assert rooms
    for room in rooms:
        below = {PLANNING / "grace" / room, PLANNING.parent / room}
        assert any(path.exists() for path in below), room


def constants():
    """Name -> (value as written, docstring) of planning/constants.py."""
    source = (PLANNING / "constants.py").read_text()
    body = ast.parse(source).body
    assigned = [(one, after) for one, after in pairwise(body) if isinstance(one, ast.Assign)]
    return {one.targets[0].id: (ast.get_source_segment(source, one.value), " ".join(after.value.value.split())) for one, after in assigned}


def test_the_table_of_constants_is_that_of_the_module():
    rows = {name.strip("`"): (value, said) for name, value, said in table("## Constants", "constant")[1:]}
    assert rows == constants()


def test_every_constant_names_its_figure_or_is_not_tuned():
    for name, (_, said) in constants().items():
        pages = re.findall(r"\w+_\d{4}-\d\d-\d\d\.md", said)
        assert all((ROOT / "benchmarks" / "results" / page).exists() for page in pages), name
        assert pages or re.search(r"[Nn]ot tuned|As for|Figures of|Row of|commonly given", said), name
