"""The cost model against figures that others published. Writes a page in Markdown.

    python benchmarks/published.py [OLMOE_TRACE DEEPSEEK_V2_LITE_TRACE] [-o benchmarks/results/published_DATE.md]

`published.csv` has the figures, `published_models.py` what the model says of each. Presets are used as they ship, and nothing is fitted to
this page. What counts is the order: within a series every two figures that are over 5% apart (2 points, of percentages), and signs.
The paper's own tables need traces of tokens: without them their rows are left out.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from pathlib import Path

from grace_moe import RoutingTrace
from published_models import MODELS, Given

TABLE = Path(__file__).with_name("published.csv")
TIE, TIE_POINTS = 0.05, 2.0
SIGNED = {"% of Occult": 0.0, "ratio": 1.0}
"""Units with a sign: above, or below so much."""
COMPONENTS = "grace-moe-components"
OF_TRACES = ("component", "grouping")
SOURCES = {
    "deepep-low-latency-h800": (
        "DeepEP, docs/legacy.md, low-latency kernels: 128 tokens a rank, hidden 7168, top-8, FP8 there and BF16 back; H800, "
        "400 Gbit/s a device",
        "https://github.com/deepseek-ai/DeepEP/blob/main/docs/legacy.md",
    ),
    "deepep-low-latency-h100-rdma": (
        "DeepEP over NCCL (NVIDIA's guide to it), NVSHMEM's table: the same on H100. It says 46.8 GB/s for 8 ranks of one node: "
        "NVLink was not in use",
        "https://arxiv.org/abs/2511.15076 has the same work; the guide was read in a fork of DeepEP",
    ),
    "deepep-normal-h800": (
        "DeepEP, docs/legacy.md, normal kernels: 4,096 tokens a rank, hidden 7168, top-8 of 4 groups, 24 SMs; H800, NVLink of 160 GB/s. "
        "Bytes over time, with the rank's own node counted",
        "https://github.com/deepseek-ai/DeepEP/blob/main/docs/legacy.md",
    ),
    "deepep-normal-h100": (
        "DeepEP over NCCL, NVSHMEM's table of normal kernels: the same on H100",
        "https://arxiv.org/abs/2511.15076 has the same work; the guide was read in a fork of DeepEP",
    ),
    "trtllm-one-sided-gb200": (
        "TensorRT-LLM, blog 18, one-sided all-to-all over NVLink: a row a device, hidden 7168, top-8, even routing; GB200 NVL72",
        "https://github.com/NVIDIA/TensorRT-LLM/tree/main/docs/source/blogs/tech_blog",
    ),
    "trtllm-eplb-table-1": (
        "TensorRT-LLM, blog 4, table 1: DeepSeek-R1, machine translation, 32 GB200; the model knows the spread by expert alone "
        "(164.1 of 128)",
        "https://github.com/NVIDIA/TensorRT-LLM/tree/main/docs/source/blogs/tech_blog",
    ),
    "sglang-decode-moe": (
        "SGLang, large-scale EP: expert kernels in decode, SGLang on 9 nodes over DeepSeek's profile on 16",
        "https://lmsys.org/blog/2025-05-05-large-scale-ep",
    ),
    "deepseek-decode-dispatch": (
        "DeepSeek's profile of decode (128 ranks, 128 requests each, two micro-batches), as told in SGLang's blog: 0.17 ms a layer",
        "https://github.com/deepseek-ai/profile-data, https://lmsys.org/blog/2025-05-05-large-scale-ep",
    ),
    COMPONENTS: (
        "GRACE-MoE, the component table (docs/method.md): 2 nodes of 2 A100, 25 Gbit/s; mean of three models (of two here)",
        "https://arxiv.org/abs/2509.25041",
    ),
    "grace-moe-grouping": (
        "GRACE-MoE, grouping alone, OLMoE (docs/method.md): the same cluster, whole runs",
        "https://arxiv.org/abs/2509.25041",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published figure, and the model's."""

    table: str
    series: str
    point: str
    unit: str
    measured: float
    modelled: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One order, or sign."""

    what: str
    right: bool


def figures(given: Given) -> list[Figure]:
    """Every row of the table that can be modelled."""
    with TABLE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if given.traces or row["model"] not in OF_TRACES]
    return [_figure(row, given) for row in rows]


def _figure(row: Mapping[str, str], given: Given) -> Figure:
    arguments = dict(pair.split("=") for pair in row["arguments"].split())
    names = {name: row[name] for name in ("table", "series", "point", "unit")}
    return Figure(**names, measured=float(row["measured"]), modelled=MODELS[row["model"]](given, **arguments))


def judged(found: Sequence[Figure]) -> Iterator[Judgement]:
    """All pairs of a series that are far enough apart, and all signs."""
    for one, other in combinations(found, 2):
        if (one.table, one.series) == (other.table, other.series) and not _tied(one, other):
            right = (one.measured < other.measured) == (one.modelled < other.modelled) and one.modelled != other.modelled
            low, high = sorted((one, other), key=lambda figure: figure.measured)
            yield Judgement(what=f"{one.table}, {one.series}: {low.point} is less than {high.point}", right=right)
    for figure in found:
        if figure.unit in SIGNED and abs(figure.measured - SIGNED[figure.unit]) > (TIE_POINTS if figure.unit.startswith("%") else TIE):
            zero = SIGNED[figure.unit]
            sign = "above" if figure.measured > zero else "below"
            right = (figure.measured > zero) == (figure.modelled > zero) and figure.modelled != zero
            yield Judgement(what=f"{figure.table}, {figure.series}: {figure.point} is {sign} {zero:g}", right=right)


def _tied(one: Figure, other: Figure) -> bool:
    apart = abs(one.measured - other.measured)
    return apart <= TIE_POINTS if one.unit.startswith("%") else apart <= TIE * max(abs(one.measured), abs(other.measured))


def page(found: Sequence[Figure]) -> str:
    """Markdown."""
    orders = list(judged(found))
    others = [order for order in orders if not order.what.startswith(f"{COMPONENTS},")]
    missed = [order.what for order in orders if not order.right]
    lines = [
        "# The cost model against published figures",
        "",
        f"`benchmarks/published.py`, {date.today()}. {len(found)} figures of {len({figure.table for figure in found})} tables; "
        f"{_share(orders)} orders and signs right; without the paper's component table {_share(others)}.",
        "",
        "Presets as they ship (H100's stand for H800's); nothing is fitted to this page. An order is judged for every two figures of a "
        f"series that are over {TIE:.0%} apart ({TIE_POINTS:g} points, of percentages). How near the model's numbers are is told and not "
        "judged: machines, versions and loads differ.",
        "",
        *_by_table(found, orders),
        "## Misses",
        "",
        *([f"- {what}" for what in missed] or ["None."]),
    ]
    return "\n".join(lines) + "\n"


def _share(orders: Sequence[Judgement]) -> str:
    right = sum(order.right for order in orders)
    return f"{right} of {len(orders)} ({right / len(orders):.1%})"


def _by_table(found: Sequence[Figure], orders: Sequence[Judgement]) -> Iterator[str]:
    for table in dict.fromkeys(figure.table for figure in found):
        title, address = SOURCES[table]
        own = [order for order in orders if order.what.startswith(f"{table},")]
        yield f"## {table}: {sum(order.right for order in own)} of {len(own)} right"
        yield ""
        yield f"{title}. {address}"
        yield ""
        yield "| | | published | model |"
        yield "|---|---|---|---|"
        for figure in (figure for figure in found if figure.table == table):
            yield f"| {figure.series} | {figure.point} | {figure.measured:g} {figure.unit} | {figure.modelled:.4g} |"
        yield ""


def main() -> None:
    """The page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("traces", nargs="*", type=Path)
    options.add_argument("-o", "--out", type=Path, default=Path(f"benchmarks/results/published_{date.today()}.md"))
    arguments = options.parse_args()
    text = page(figures(Given(traces=tuple(RoutingTrace.load(path) for path in arguments.traces))))
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
