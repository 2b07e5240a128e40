"""The page: the content's sentences, numbers, table and figures as one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from pathlib import Path

from grace_moe.errors import MissingExtraError
from grace_moe.files import write_atomically
from grace_moe.report import words
from grace_moe.report.content import AFTER, BEFORE, ReportContent
from grace_moe.report.tables import COLUMNS, cell_text, table_rows


def require_report() -> None:
    """Raise MissingExtraError unless plotly can be imported."""
    from importlib.util import find_spec

    if find_spec("plotly") is None:
        raise MissingExtraError("plotly", "report")


def write_report(content: ReportContent, path: str | Path) -> None:
    """Write the page whole, or nothing. The same content gives the same bytes.

    Raises:
        MissingExtraError: plotly is not installed.
        GraceError: the file can't be written.
    """
    write_atomically(Path(path), html_page(content).encode("utf-8", errors="replace"))


def html_page(content: ReportContent) -> str:
    """The page's HTML. Every text that a file may hold is escaped; a policy in its head forbids all requests."""
    require_report()
    from plotly.io import to_json
    from plotly.offline import get_plotlyjs

    from grace_moe.report.figures import figures

    # JSON inside a script element: plotly writes <, > and / as escapes, so that no text can end it.
    data = ",".join(f"{json.dumps(name)}:{to_json(figure, engine='json')}" for name, figure in sorted(figures(content).items()))
    scripts = [get_plotlyjs(), _resource("page.js")]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {' '.join(map(_hash, scripts))}"
    title = f"GRACE-MoE: {content.trace.model or 'a model'} on {content.topology.shape}"
    body = "\n".join([_head(content), _cards(content), _INTRODUCTION, _table(content), *_sections(content), _made(content)])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{_resource("page.css")}</style>
</head>
<body>
<main>
{body}
</main>
<noscript>The figures need JavaScript; the sentence and the numbers above do not.</noscript>
<script type="application/json" id="figures">{{{data}}}</script>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""


def _head(content: ReportContent) -> str:
    trace = content.trace
    experts = f"{trace.num_layers} MoE layers of {trace.num_experts} experts, top-{trace.top_k}"
    about = " · ".join([trace.model or "model not recorded", trace.dataset or "dataset not recorded", experts])
    headline = "".join(f"<b>{escape(text)}</b>" if strong else escape(text) for text, strong in words.sentence_parts(content))
    return f"""<p class="about">{escape(about)}</p>
<h1>{headline}</h1>"""


_INTRODUCTION = """<p class="how">A router sends each token to a few experts, which live on different devices. A token is copied to every
node that holds one of its experts, over the slow network; and every layer waits for its busiest device. Contiguous placement deals the
experts out in the order of their numbers; GRACE places and replicates them by what the router chose.</p>"""


def _cards(content: ReportContent) -> str:
    cards = []
    for number in words.key_numbers(content):
        largest = max(number.before, number.after) or 1.0
        before, after = number.texts
        cards.append(
            f'<div class="card"><h3>{escape(number.title)}</h3><div class="unit">{escape(number.unit)}</div>'
            f'<div class="value">{after}</div><div class="change {number.verdict}">{escape(number.change)}</div>'
            f'<div class="bars">{_bar("contiguous", before, number.before / largest, "")}'
            f"{_bar('GRACE', after, number.after / largest, ' ours')}</div></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _bar(name: str, text: str, share: float, kind: str) -> str:
    return f'<div class="bar{kind}"><span>{name}</span><i style="width:{share:.1%}"></i><span>{text}</span></div>'


def _table(content: ReportContent) -> str:
    rows = table_rows(content.comparison)
    columns = COLUMNS[:-1]
    heads = "".join(f"<th>{escape(heading).replace(chr(10), '<br>')}</th>" for _, heading, _, _ in columns)
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            text, best = cell_text(row, rows, *column)
            cells.append(f'<td class="best">{text}</td>' if best else f"<td>{text}</td>")
        name = words.label(row["method"]) + (" <small>linear</small>" if row["method"] == BEFORE else "")
        lines.append(f'<tr class="{"ours" if row["method"] == AFTER else ""}"><td>{name}</td>{"".join(cells)}</tr>')
    planned, measured = content.comparison.planned_on, content.trace
    others = "the same requests" if planned.digest == measured.digest else "other requests"
    return f"""<h2>Every method on the same requests</h2>
<p class="how">Copies of a token between and inside nodes, per layer; load of the busiest device over the mean; slots over experts;
time by a model of the links, not measured. Less is better everywhere; bold is best. Planned on {planned.num_tokens:,} tokens,
measured on {measured.num_tokens:,} of {others}.</p>
<div class="scroll"><table><thead><tr><th>method</th>{heads}</tr></thead><tbody>
{chr(10).join(lines)}
</tbody></table></div>"""


def _sections(content: ReportContent) -> list[str]:
    from grace_moe.report.cluster import drawing
    from grace_moe.report.figures import DRAWN_DEVICES, expert_load_range, traffic_range

    drawn = content.topology.num_devices <= DRAWN_DEVICES
    cluster_how = (
        "Boxes are nodes, squares devices. A line is as wide as the copies that it carries, both ways, on the same scale before and after; "
        "the numbers are copies per token and layer."
        if drawn
        else "A cell is the copies that its row's device sends to its column's, per token and layer. Copies between nodes go to the "
        "device of the same rank there, which hands them on: those are the diagonal stripes."
    )
    cluster_key = "" if drawn else _key("0", f"{traffic_range(content):.3f} copies")
    lines = "lines are between devices, thick ones between nodes" if drawn else "lines are between nodes"
    memory = " The line is GRACE with other amounts of expert memory (1.00x has no replicas)." if len(content.memory) > 1 else ""
    return [
        _section(
            words.load_title(content),
            "A row is a layer, a column an expert; the stronger the colour, the more often it is chosen. "
            "Hot experts load the devices that hold them.",
            f'<div id="expert-load"></div>{_key("0", f"{expert_load_range(content):.1f}x the mean, or more")}',
        ),
        _section(
            words.balance_title(content),
            "The same tokens, by the device that computes them. A strong colour is a device that the others of its layer wait for; "
            "an even load is blank.",
            _pair("device-load") + _key("the mean or less", "the busiest of both sides"),
        ),
        _section(
            words.affinity_title(content),
            f"Layer {content.affinity.layer_id}, whose gain is the median. Both sides show the same experts, ordered by device: "
            f"{lines} (a replicated expert stands where it computes most). A cell is the "
            "tokens that chose both experts: strong blocks on the diagonal mean that experts that fire together live together.",
            _pair("affinity", shape=(1, 1)) + _key("never together", "often together (the top 1%)"),
        ),
        _section(
            words.cluster_title(content),
            cluster_how,
            _pair("cluster", shape=drawing(content.topology).span if drawn else (1, 1)) + cluster_key,
        ),
        _section(
            words.frontier_title(content),
            f"Each point is a method: left is less traffic, down is better balance.{memory} Touch a point for its numbers.",
            '<div id="frontier"></div>',
        ),
    ]


def _section(title: str, how: str, figure: str) -> str:
    return f'<section><h2>{escape(title)}</h2>\n<p class="how">{escape(how)}</p>\n{figure}</section>'


def _pair(name: str, *, shape: tuple[float, float] | None = None) -> str:
    """Before and after side by side; `shape` is width and height of figures that keep their proportions."""
    kind = "" if shape is None else f' style="aspect-ratio:{shape[0]:.3f}/{shape[1]:.3f}"'
    return (
        f'<div class="pair"><div class="before"><h3>Before: contiguous</h3><div id="{name}-before"{kind}></div></div>'
        f'<div class="after"><h3>After: GRACE</h3><div id="{name}-after"{kind}></div></div></div>'
    )


def _key(low: str, high: str) -> str:
    return f'<p class="key">{escape(low)} <i></i> {escape(high)}</p>'


def _made(content: ReportContent) -> str:
    planned, measured = content.comparison.planned_on, content.trace
    facts = {
        "GRACE-MoE": f"version {content.version}",
        "planned on": f"{planned.num_tokens:,} tokens of {planned.source} (digest {planned.digest})",
        "measured on": f"{measured.num_tokens:,} tokens of {measured.source} (digest {measured.digest})",
        "cluster": f"{words.cluster(content.topology)} ({content.topology.source})",
        "seed": str(content.seed),
        "before, after": f"methods {BEFORE} and {AFTER}",
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    again = f"<dt>to make it again</dt><dd><code>{escape(content.command)}</code></dd>" if content.command else ""
    return f"<section><h2>How this page was made</h2>\n<dl>{lines}{again}</dl></section>"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (files("grace_moe.report") / name).read_text(encoding="utf-8")
