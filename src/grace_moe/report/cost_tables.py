"""Tables of milliseconds for the terminal: how far off fits are, a verdict, and a sweep of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from grace_moe.discover.declared import in_words
from grace_moe.discover.finding import Discovery
from grace_moe.errors import printable
from grace_moe.evaluation import Diagnosis, SizePoint
from grace_moe.report.tables import plain_table

_PARTS = ("dispatch", "compute", "combine", "idle", "hidden")


def fits_table(fits: Sequence[Mapping[str, Any]]) -> Table:
    """One row a fit: how far off it is."""
    caption = "Errors relative to what was measured. Held out: each fifth row, fitted without. Left out: a number of nodes."
    table = plain_table(title="How far off the fits are", caption=Text(printable(caption)))
    for heading in ("what ", "rows ", "median ", "95th ", "held out ", "left out "):
        table.add_column(heading, justify="left" if heading == "what " else "right", overflow="fold")
    for fit in fits:
        held, left = fit.get("held_out"), fit.get("left_out")
        table.add_row(
            Text(printable(f"{fit['backend']}: {fit['what']} ")),
            f"{fit['points']:,} ",
            f"{fit['median_error']:.1%} ",
            f"{fit['p95_error']:.1%} ",
            f"{held['median_error']:.1%} " if held else "- ",
            f"{left['median_error']:.1%} " if left else "- ",
        )
    return table


def diagnosis_table(found: Diagnosis) -> Table:
    """What a layer's time is made of, now and with the plan."""
    table = plain_table(title="Milliseconds of a layer", caption=Text(printable(f"Modelled, not measured: {found.told}.")))
    for heading in ("", *(f"{name} " for name in ("total", *_PARTS))):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, time in (("now", found.now), ("planned", found.planned)):
        if time is not None:
            table.add_row(name, *(f"{1e3 * getattr(time, part):.3f} " for part in ("total", *_PARTS)))
    return table


def tiers_table(found: Discovery) -> Table:
    """One row a tier of links, narrow to wide."""
    caption = "Spread: half of the range of the middle half of its pairs. Agree: pairs that are nearer to it than to another tier."
    table = plain_table(title="Links that were measured", caption=Text(caption))
    for heading in ("tier ", "joins ", "pairs ", "GB/s ", "spread ", "us ", "agree "):
        table.add_column(heading, justify="left" if heading in ("tier ", "joins ") else "right", overflow="fold")
    for name, tier, latency in zip(found.names, found.tiers, found.latency_s, strict=True):
        cells = (f"{int(tier.pairs.sum()) // 2:,} ", f"{tier.bandwidth / 1e9:.3g} ", f"{tier.spread:.1%} ", f"{latency * 1e6:.3g} ")
        table.add_row(f"{name} ", f"{in_words(tier.groups)} ", *cells, f"{tier.agreement:.0%} ")
    return table


def size_table(points: Sequence[SizePoint], told: str) -> Table:
    """One row a combination; those of the frontier have a star."""
    caption = f"* = no other takes fewer devices, less memory and less time. Modelled, not measured: {told}."
    table = plain_table(title="Milliseconds of a layer, with experts in order and balanced by load", caption=Text(printable(caption)))
    several = len({point.link for point in points}) > 1
    links = ("links ",) if several else ()
    rest = ("slots ", "batch ", "in \norder ", "bal- \nanced ", "saved ", "most \nof it ", "GB a \ndevice ", "factor ", "")
    for heading in ("cluster ", *links, *rest):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        row = point.to_dict()
        table.add_row(
            f"{point.topology} ",
            *([f"{point.link:g}x "] if several else []),
            f"{point.redundancy:g}x ",
            f"{point.batch:,} ",
            f"{1e3 * point.in_order.total:.3f} ",
            f"{1e3 * point.balanced.total:.3f} ",
            f"{point.gain:.0%} ",
            f"{row['limited_by']} ",
            f"{point.memory_bytes / 1e9:.1f} ",
            f"{point.factor:.2f} ",
            "*" if point.best else "",
            style="bold" if point.best else "",
        )
    return table
