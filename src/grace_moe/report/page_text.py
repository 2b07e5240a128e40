"""The page's sentence, numbers and table, and how it was made."""

from __future__ import annotations

from html import escape

from grace_moe.report import words
from grace_moe.report.content import AFTER, BEFORE, ReportContent
from grace_moe.report.served import verdict
from grace_moe.report.tables import COLUMNS, cell_text, table_rows

INTRODUCTION = """<p class="how">A router sends each token to a few experts, which live on different devices. A token is copied to every
node that holds one of its experts, over the slow network; and every layer waits for its busiest device. Contiguous placement deals the
experts out in the order of their numbers; GRACE places and replicates them by what the router chose.</p>"""


def head(content: ReportContent) -> str:
    """What was measured, the verdict where there is one, and the gain in a sentence."""
    trace = content.trace
    experts = f"{trace.num_layers} MoE layers of {trace.num_experts} experts, top-{trace.top_k}"
    about = " · ".join([trace.model or "model not recorded", trace.dataset or "dataset not recorded", experts])
    headline = "".join(f"<b>{escape(text)}</b>" if strong else escape(text) for text, strong in words.sentence_parts(content))
    first = "" if content.served is None else f"\n{verdict(content.served)}"
    return f"""<p class="about">{escape(about)}</p>{first}
<h1>{headline}</h1>"""


def cards(content: ReportContent) -> str:
    """The key numbers, before and after."""
    found = []
    for number in words.key_numbers(content):
        largest = max(number.before, number.after) or 1.0
        before, after = number.texts
        found.append(
            f'<div class="card"><h3>{escape(number.title)}</h3><div class="unit">{escape(number.unit)}</div>'
            f'<div class="value">{after}</div><div class="change {number.verdict}">{escape(number.change)}</div>'
            f'<div class="bars">{_bar("contiguous", before, number.before / largest, "")}'
            f"{_bar('GRACE', after, number.after / largest, ' ours')}</div></div>"
        )
    return f'<div class="cards">{"".join(found)}</div>'


def _bar(name: str, text: str, share: float, kind: str) -> str:
    return f'<div class="bar{kind}"><span>{name}</span><i style="width:{share:.1%}"></i><span>{text}</span></div>'


def table(content: ReportContent) -> str:
    """Every method's numbers."""
    rows = table_rows(content.comparison)
    # Where a model was named, milliseconds are the verdict's, of its sizes and setting.
    columns = [column for column in COLUMNS[:-1] if content.served is None or column[0] != "modelled_layer_time"]
    time = "" if content.served is not None else ";\ntime by a model of the links, not measured"
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
<p class="how">Copies of a token between and inside nodes, per layer; load of the busiest device over the mean; slots over experts{time}.
Less is better everywhere; bold is best. Planned on {planned.num_tokens:,} tokens,
measured on {measured.num_tokens:,} of {others}.</p>
<div class="scroll"><table><thead><tr><th>method</th>{heads}</tr></thead><tbody>
{chr(10).join(lines)}
</tbody></table></div>{_left_out(content)}"""


def _left_out(content: ReportContent) -> str:
    """Layers and methods that the table leaves out, and why."""
    comparison = content.comparison
    reasons = [*comparison.notes, *(f"{words.label(refusal.method)}: {refusal.error}" for refusal in comparison.refused)]
    return "".join(f'\n<p class="how">{escape(reason)}</p>' for reason in reasons)


def made(content: ReportContent) -> str:
    """Versions, traces and the command: how to make the page again."""
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
