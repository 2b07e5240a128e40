"""The report's sentences: what was found, better or worse, in words that its numbers bear out."""

from __future__ import annotations

from dataclasses import dataclass

from grace_moe.evaluation import ComparisonRow
from grace_moe.report.content import AFTER, ReportContent
from grace_moe.report.traffic import device_load
from grace_moe.topology import Topology

LABELS = {
    "linear": "contiguous",
    "round_robin": "round robin",
    "grace_paper": "GRACE paper",
    "grace": "GRACE",
    "eplb": "EPLB",
    "occult": "Occult",
    "c2r": "C2R",
    "cooccurrence": "co-occurrence",
    "biased": "biased",
    "exflow": "ExFlow",
    "moetuner": "MoETuner",
}
"""Methods as a person reads them."""


def label(method: str) -> str:
    """The name of a method, or of METHOD+POLICY, as a person reads it."""
    name, plus, policy = method.partition("+")
    return LABELS[name] + plus + policy


@dataclass(frozen=True, kw_only=True)
class KeyNumber:
    """One number, before and after; less is better."""

    title: str
    unit: str
    form: str
    before: float
    after: float

    @property
    def texts(self) -> tuple[str, str]:
        """Both as printed."""
        return self.form.format(self.before), self.form.format(self.after)

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `same`, as printed."""
        if self.texts[0] == self.texts[1]:
            return "same"
        return "better" if self.after < self.before else "worse"

    @property
    def change(self) -> str:
        """The difference in words: `27% less`."""
        if self.verdict == "same":
            return "no change"
        if not self.before:
            return "more"
        change = abs(1 - self.after / self.before)
        return f"{_percent(change)} {'less' if self.after < self.before else 'more'}"


def key_numbers(content: ReportContent) -> tuple[KeyNumber, ...]:
    """Traffic, balance, time and memory; the time is the verdict's where there is one."""
    before, after = (row.to_dict(content.topology) for row in (content.before, content.after))
    if content.served is not None and content.served.seconds is not None:
        before["modelled_layer_time"], after["modelled_layer_time"] = content.served.seconds
    where = "between nodes" if content.traffic == "cross_node_copies" else "between devices"
    columns = (
        (content.traffic, f"Copies {where}", "of each token, in each layer", "{:.3f}", 1.0),
        ("load_max_over_mean", "Busiest device", "its load over the mean; 1 is even", "{:.2f}x", 1.0),
        ("modelled_layer_time", "Time of a layer", "ms, modelled, not measured", "{:.2f}", 1000.0),
        ("slots_total_over_experts", "Expert memory", "slots over experts; 1 is no replicas", "{:.2f}x", 1.0),
    )
    return tuple(
        KeyNumber(title=title, unit=unit, form=form, before=before[name] * scale, after=after[name] * scale)
        for name, title, unit, form, scale in columns
    )


def sentence(content: ReportContent) -> str:
    """The gain, or the loss, and what it costs."""
    return "".join(text for text, _ in sentence_parts(content))


def sentence_parts(content: ReportContent) -> tuple[tuple[str, bool], ...]:
    """The sentence in pieces, and whether each is what to see first."""
    traffic, balance, _, memory = key_numbers(content)
    where = "between nodes" if content.traffic == "cross_node_copies" else "between devices"
    if traffic.verdict == "same":
        many, than = "as many", "as"
    elif traffic.verdict == "better":
        many, than = f"{_percent(1 - traffic.after / traffic.before)} fewer", "than"
    else:
        many, than = f"{_percent(traffic.after / traffic.before - 1)} MORE" if traffic.before else "MORE", "than"
    joint = ", but" if {traffic.verdict, balance.verdict} == {"better", "worse"} else ", and"
    worse = ", which is worse" if balance.verdict == "worse" else ""
    held = "it needs no more memory" if memory.verdict != "worse" else f"it holds {memory.after / memory.before - 1:.0%} more expert memory"
    return (
        (f"On {cluster(content.topology)}, GRACE sends ", False),
        (f"{many} token copies {where}", True),
        (f" {than} contiguous placement{joint} the busiest device carries ", False),
        (f"{balance.texts[1]} the mean load", True),
        (f" (contiguous: {balance.texts[0]}{worse}); {held}.", False),
    )


def cluster(topology: Topology) -> str:
    """`2 nodes x 4 devices`, or the devices in all where nodes differ."""
    sizes = {len(node.devices) for node in topology.nodes}
    nodes = _several(topology.num_nodes, "node")
    if len(sizes) > 1:
        return f"{nodes} with {topology.num_devices} devices in all"
    return f"{nodes} x {_several(sizes.pop(), 'device')}"


def load_title(content: ReportContent) -> str:
    """Of expert load."""
    hottest = float(content.expert_load.max(axis=1).mean())
    return f"Experts are not equal: a layer's hottest is chosen {hottest:.1f}x as often as the mean"


def balance_title(content: ReportContent) -> str:
    """Of device load."""
    balance = key_numbers(content)[1]
    worst = [float(device_load(row.evaluation).max()) for row in (content.before, content.after)]
    return (
        f"Busiest device of a layer, over the mean: {_change(*balance.texts)}; in the worst layer {_change(*(f'{w:.2f}x' for w in worst))}"
    )


def affinity_title(content: ReportContent) -> str:
    """Of affinity."""
    before, after = (f"{share:.0%}" for share in content.affinity.together)
    where = "node" if content.topology.num_nodes > 1 else "device"
    return f"Pairs of experts chosen together that share a {where}: {_change(before, after)}"


def cluster_title(content: ReportContent) -> str:
    """Of the cluster."""
    evaluations = [row.evaluation for row in (content.before, content.after)]
    inside = _change(*(f"{e.intra_node_copies:.2f}" for e in evaluations))
    if content.topology.num_nodes == 1:
        return f"Copies of a token between devices: {inside}"
    return f"Copies of a token between nodes: {_change(*(f'{e.cross_node_copies:.2f}' for e in evaluations))}; inside nodes: {inside}"


def frontier_title(content: ReportContent) -> str:
    """Of traffic against balance."""
    others = [row for row in content.comparison.rows if row.method != AFTER]
    better = [label(row.method) for row in others if _at_least_as_good(content, row, content.after)]
    if better:
        return f"{_list(better)} {'does' if len(better) == 1 else 'do'} at least as well as GRACE in both traffic and balance"
    beaten = [row for row in others if _at_least_as_good(content, content.after, row)]
    of = f"{len(beaten)} of the {_several(len(others), 'other method')}" if len(beaten) < len(others) else f"all {len(others)} others"
    return f"GRACE is ahead of {of} in both traffic and balance" if beaten else "Every method trades traffic against balance"


def _at_least_as_good(content: ReportContent, row: ComparisonRow, other: ComparisonRow) -> bool:
    one, two = row.evaluation, other.evaluation
    return getattr(one, content.traffic) <= getattr(two, content.traffic) and one.load_max_over_mean <= two.load_max_over_mean


def _change(before: str, after: str) -> str:
    return f"{before} as before" if before == after else f"{before} → {after}"


def _percent(share: float) -> str:
    """A whole number, or one decimal below 1%."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
