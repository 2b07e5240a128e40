"""The HTML page: true sentences, the comparison's numbers, nothing from outside, nothing from a file unescaped, the same bytes."""

import importlib.util
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("plotly")

from grace_moe.cli import main
from grace_moe.errors import GraceError, MissingExtraError
from grace_moe.evaluation import compare, modelled_layer_time, over_memory
from grace_moe.planning import METHODS
from grace_moe.report import html_page, report_content, require_report, sentence, write_report
from grace_moe.report.cluster import drawing
from grace_moe.report.content import device_load, device_traffic, node_traffic
from grace_moe.report.figures import DRAWN_DEVICES, MAX_BINS, figures
from grace_moe.report.words import LABELS, cluster, frontier_title, key_numbers
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

QUICK = ("grace", "linear", "eplb")


def compared(topology="2x2", methods=QUICK, **options):
    trace = synthetic_trace(**{"tokens": 240, "layers": 2, "experts": 16, "top_k": 4} | options)
    return compare(trace, Topology.parse(topology), methods=methods)


@pytest.fixture(scope="module")
def comparison():
    return compared()


@pytest.fixture(scope="module")
def content(comparison):
    return report_content(comparison, memory=over_memory(comparison, (1.0, 1.5)), command="grace-moe report t --topology 2x2 -o r.html")


@pytest.fixture(scope="module")
def page(content):
    return html_page(content)


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.raw, self._inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        self.raw.append((self._inside, data))


# --- the file ----------------------------------------------------------------------------------------------------------------------------


def test_it_asks_for_nothing_from_outside(page):
    parsed = Elements(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in (attributes.get("style") or "")
    styles = "".join(text for tag, text in parsed.raw if tag == "style")
    assert "--ours" in styles
    assert not re.search(r"url\(|@import|https?://", styles)


def test_its_policy_lets_only_its_own_scripts_run(page):
    policy = next(a["content"] for tag, a in Elements(page).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert "connect-src" not in policy
    assert not re.search(r"script-src[^;]*unsafe", policy)
    assert len(re.findall(r"'sha256-[\w+/]+='", policy)) == 2


def test_the_same_comparison_gives_the_same_bytes(page):
    again = compared()
    assert (
        html_page(report_content(again, memory=over_memory(again, (1.0, 1.5)), command="grace-moe report t --topology 2x2 -o r.html"))
        == page
    )


def test_no_text_of_a_file_becomes_markup(comparison):
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\ud800'
    names = {"model": evil, "dataset": evil, "source": evil}
    parts = {name: replace(getattr(comparison, name), **names) for name in ("planned_on", "measured_on")}
    text = html_page(report_content(replace(comparison, **parts), command=evil))
    elements = Elements(text).elements
    assert [tag for tag, _ in elements].count("script") == 3
    assert not [tag for tag, _ in elements if tag == "img"]
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_such_text_is_written(comparison, tmp_path):
    evil = replace(comparison, measured_on=replace(comparison.measured_on, model="\ud800 <b>"))
    write_report(report_content(evil), tmp_path / "r.html")
    assert "? &lt;b&gt;" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_page(content, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("grace_moe.files.writing.os.replace", full)
    with pytest.raises(GraceError, match=r"r\.html: can't be written: No space left"):
        write_report(content, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_without_plotly_it_names_the_extra(content, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else find(name))
    with pytest.raises(MissingExtraError) as error:
        require_report()
    assert str(error.value) == "plotly is not installed; install it with: pip install 'grace-moe[report]'"
    with pytest.raises(MissingExtraError):
        write_report(content, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


# --- what it says ------------------------------------------------------------------------------------------------------------------------


def scaled(content, *, copies: float, busiest: float, slots: float):
    """The same content with ours at these multiples of contiguous placement's traffic, balance and memory."""
    before = content.before.evaluation
    before = replace(before, num_tokens=before.num_tokens * 1000, cross_node=before.cross_node * 1000)  # so that rounding is nothing
    before = replace(before, cross_node_links=content.before.evaluation.cross_node_links * 1000)
    links = np.round(before.cross_node_links * copies).astype(np.int64)
    load = before.device_load.mean(axis=1, keepdims=True) * np.array([busiest] + [(4 - busiest) / 3] * 3)
    held = np.round(before.slots * slots).astype(np.int64)
    after = replace(before, cross_node_links=links, cross_node=links.sum(axis=(1, 2)), device_load=load, slots=held)
    changed = {"linear": before, "grace": after}
    rows = tuple(replace(row, evaluation=changed.get(row.method, row.evaluation)) for row in content.comparison.rows)
    return replace(content, comparison=replace(content.comparison, rows=rows))


def test_the_sentence_of_a_gain(content):
    was = content.before.evaluation.load_max_over_mean
    assert sentence(scaled(content, copies=0.75, busiest=1.05, slots=1.25)) == (
        "On 2 nodes x 2 devices, GRACE sends 25% fewer token copies between nodes than contiguous placement, and the busiest device "
        f"carries 1.05x the mean load (contiguous: {was:.2f}x); it holds 25% more expert memory."
    )


@pytest.mark.parametrize(
    ("copies", "busiest", "slots", "words"),
    [
        (1.1, 1.0, 1.0, "GRACE sends 10% MORE token copies between nodes than contiguous placement, but the busiest device carries 1.00x"),
        (0.5, 2.5, 1.0, "50% fewer token copies between nodes than contiguous placement, but the busiest device carries 2.50x"),
        (1.0, 2.5, 1.0, "GRACE sends as many token copies between nodes as contiguous placement, and the busiest device carries 2.50x"),
        (2.0, 2.5, 2.0, "100% MORE token copies between nodes than contiguous placement, and the busiest device carries 2.50x"),
    ],
)
def test_the_sentence_of_a_loss(content, copies, busiest, slots, words):
    lost = scaled(content, copies=copies, busiest=busiest, slots=slots)
    found = sentence(lost)
    assert words in found
    assert ("which is worse" in found) == (busiest > content.before.evaluation.load_max_over_mean)
    assert found.endswith("it needs no more memory." if slots == 1 else "it holds 100% more expert memory.")
    assert html_page(lost).count('class="change worse"') >= 1


def test_one_node_and_one_device():
    one_node = report_content(compared("1x4"))
    assert sentence(one_node).startswith("On 1 node x 4 devices, GRACE sends ")
    assert "token copies between devices" in sentence(one_node)
    alone = report_content(compared("1x1"))
    assert "as many token copies between devices as contiguous" in sentence(alone)
    for content in (one_node, alone):
        assert "inside nodes:" not in html_page(content)


def test_nodes_of_unequal_size(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"nodes": [{"devices": [{}, {}, {}]}, {"devices": [{}]}]}))
    content = report_content(compared(str(path), methods=("linear", "grace")))
    assert cluster(content.topology) == "2 nodes with 4 devices in all"
    assert "2 nodes with 4 devices in all" in html_page(content)


def test_key_numbers_are_the_comparisons(comparison, content):
    for side, row in (("before", content.before), ("after", content.after)):
        evaluation = row.evaluation
        expected = [
            evaluation.cross_node_copies,
            evaluation.load_max_over_mean,
            1000 * modelled_layer_time(evaluation, comparison.topology).total,
            evaluation.slots_total_over_experts,
        ]
        assert [getattr(number, side) for number in key_numbers(content)] == pytest.approx(expected)


def test_the_page_shows_every_method_and_number(content, page):
    assert sentence(content) in re.sub(r"</?b>", "", page)
    for number in key_numbers(content):
        assert f'<div class="value">{number.texts[1]}</div>' in page
    for row in content.comparison.rows:
        values = row.to_dict(content.topology)
        assert LABELS[row.method] in page
        assert f">{values['cross_node_copies']:.3f}</td>" in page
    for digest in (content.comparison.planned_on.digest, content.trace.digest):
        assert digest in page
    assert content.command in page


def test_every_method_has_a_name():
    assert set(LABELS) == set(METHODS)


def test_who_is_ahead_is_told_either_way(content):
    assert frontier_title(scaled(content, copies=0.1, busiest=1.0, slots=1)) == "GRACE is ahead of all 2 others in both traffic and balance"
    assert frontier_title(scaled(content, copies=2, busiest=3, slots=1)).endswith(
        "do at least as well as GRACE in both traffic and balance"
    )


# --- what the figures show ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["2x2", "3x2", "4x1", "1x3"])
def test_traffic_between_devices_adds_up(topology):
    found = report_content(compared(topology))
    for row in (found.before, found.after):
        copies = device_traffic(row.evaluation, found.topology)
        between = node_traffic(copies, found.topology)
        assert not np.diag(copies).any()
        assert np.trace(between) == pytest.approx(row.evaluation.intra_node_copies)
        assert between.sum() - np.trace(between) == pytest.approx(row.evaluation.cross_node_copies)
        assert device_load(row.evaluation).max(axis=1).mean() == pytest.approx(row.evaluation.load_max_over_mean)


def test_affinity_is_ordered_by_device(content):
    affinity = content.affinity
    layer = content.trace.layer_ids.index(affinity.layer_id)
    for row, order, sizes in zip((content.before, content.after), affinity.order, affinity.sizes, strict=True):
        devices = row.placement.layers[layer].devices_of_expert
        primaries = [devices[expert][0] for expert in order]
        assert primaries == sorted(primaries)
        assert np.bincount(primaries, minlength=4).tolist() == sizes.tolist()
        assert sorted(order) == list(range(16))
    both = [{expert for expert in token if expert >= 0} for token in content.trace.topk_ids[:, layer].tolist()]
    assert affinity.counts[2, 5] == sum({2, 5} <= chosen for chosen in both)
    here = [d // 8 for d in range(16)]  # contiguous on two nodes
    together = sum(affinity.counts[a, b] for a in range(16) for b in range(16) if here[a] == here[b])
    assert affinity.together[0] == pytest.approx(together / affinity.counts.sum())


def test_memory_budgets_are_one_row_each_and_share_the_comparisons(comparison, content):
    held = [row.evaluation.slots_total_over_experts for row in content.memory]
    assert held == sorted(set(held)) == [1.0, 1.25, 1.5]
    assert content.memory[1] is content.after
    assert len(over_memory(comparison, (1.2, 1.25, 1.24))) == 1


@pytest.mark.parametrize(("topology", "drawn"), [("2x2", True), ("4x4", True), ("5x4", False)])
def test_many_devices_are_a_matrix(topology, drawn):
    found = report_content(compared(topology, methods=("linear", "grace"), experts=32, layers=1))
    figure = figures(found)["cluster-after"]
    assert (found.topology.num_devices <= DRAWN_DEVICES) == drawn
    assert (figure.data[0].type == "heatmap") != drawn
    if drawn:
        assert len(figure.layout.shapes) == found.topology.num_nodes


def test_many_experts_are_binned(monkeypatch):
    found = report_content(compared(experts=64, layers=1))
    monkeypatch.setattr("grace_moe.report.figures.MAX_BINS", 20)
    shown = figures(found)
    assert shown["affinity-after"].data[0].z.shape == (16, 16)
    assert shown["expert-load"].data[0].z.shape == (1, 16)
    assert shown["affinity-before"].data[0].z.mean() == pytest.approx(found.affinity.counts.mean(), rel=0.01)
    assert MAX_BINS == 512


@pytest.mark.parametrize("shape", ["1x1", "2x2", "3x5", "4x4", "8x2", "16x1", "1x16"])
def test_nodes_do_not_overlap_in_the_drawing(shape):
    topology = Topology.parse(shape)
    plan = drawing(topology)
    for n, centre in enumerate(plan.nodes):
        inside = plan.devices[topology.node_of_device == n]
        assert (np.abs(inside - centre).max(axis=1) < plan.half).all()
        for other in plan.nodes[n + 1 :]:
            assert np.abs(other - centre).max() > 2 * plan.half


# --- the command -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    """Calls the entry point in a folder with a trace: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    synthetic_trace(tokens=160, layers=2, experts=16, top_k=4).save("t.safetensors")

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["report", "t.safetensors", "--topology", "2x2", *arguments])
        return stop.value.code, *capfd.readouterr()

    return run


def test_the_command_writes_the_page_and_says_the_gain(call, tmp_path):
    code, out, err = call("-o", "r.html", "--methods", "eplb", "--memory", "1", "--seed", "3")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith("On 2 nodes x 2 devices, GRACE sends ")
    assert second == "r.html: open it in a browser"
    page = (tmp_path / "r.html").read_text()
    assert "grace-moe report t.safetensors --topology 2x2 --methods eplb --seed 3 --memory 1 -o r.html" in page
    assert first in re.sub(r"</?b>", "", page)


def test_its_json_is_the_comparisons_numbers(call):
    code, out, _ = call("-o", "r.html", "--methods", "eplb,linear", "--json")
    value = json.loads(out)
    assert code == 0
    assert value["report"] == "r.html"
    assert [row["method"] for row in value["rows"]] == ["grace", "eplb", "linear"]
    expected = compare(RoutingTrace.load("t.safetensors"), Topology.parse("2x2"), methods=("grace", "eplb", "linear")).to_dict()
    assert value["rows"] == [{k: v for k, v in row.items() if k != "plan_seconds"} for row in expected["rows"]]
    assert [row["slots_total_over_experts"] for row in value["memory"]] == [1.0, 1.25, 1.5]


def test_the_command_measures_on_another_trace(call):
    synthetic_trace(tokens=80, layers=2, experts=16, top_k=4, seed=1).save("e.safetensors")
    _, out, _ = call("-o", "r.html", "--methods", "linear", "--eval", "e.safetensors", "--memory", "1", "--json")
    assert json.loads(out)["eval"] == {"source": "e.safetensors", "digest": RoutingTrace.load("e.safetensors").digest, "tokens": 80}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--memory", "0.5"), 2, "--memory: '0.5' is not a number from 1 (no replicas) to 4 (every expert on all devices)"),
        (("--memory", "1,x"), 2, "--memory: 'x' is not a number from 1"),
        (("--memory", "nan"), 2, "--memory: 'nan' is not a number from 1"),
        (("--methods", "best"), 2, "--methods: method 'best' is unknown; use one of grace, "),
        (("--redundancy", "9"), 2, "redundancy 9.0 is out of range"),
        (("--eval", "absent.safetensors"), 3, "absent.safetensors"),
        (("--memory", "1", "-o", "absent/r.html"), 1, "absent/r.html: can't be written: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(call, tmp_path, arguments, code, message):
    found, out, err = call("-o", "r.html", "--methods", "linear", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()
