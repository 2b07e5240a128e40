"""The page: the content's sentences, numbers, table and figures as one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from grace_moe.errors import MissingExtraError
from grace_moe.files import write_atomically
from grace_moe.report.content import ReportContent
from grace_moe.report.figures import figures
from grace_moe.report.packed import packed
from grace_moe.report.page_text import INTRODUCTION, cards, head, made, table
from grace_moe.report.sections import sections
from grace_moe.report.served import served_sections

if TYPE_CHECKING:
    import plotly.graph_objects as go


def require_report() -> None:
    """Raise MissingExtraError unless plotly can be imported."""
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
    title = f"GRACE-MoE: {content.trace.model or 'a model'} on {content.topology.shape}"
    milliseconds = [] if content.served is None else served_sections(content.served)
    body = "\n".join([head(content), cards(content), INTRODUCTION, table(content), *milliseconds, *sections(content), made(content)])
    return document(title, body, figures(content))


def document(title: str, body: str, drawn: Mapping[str, go.Figure]) -> str:
    """A page that asks the network for nothing: `body` with the figures in the elements of their ids."""
    from plotly.io import to_json
    from plotly.offline import get_plotlyjs

    data = ",".join(f"{json.dumps(name)}:{to_json(figure, engine='json')}" for name, figure in sorted(drawn.items()))
    plotly, script = get_plotlyjs(), _resource("page.js")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {_hash(plotly)} {_hash(script)}"
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
{packed("plotly", plotly)}
{packed("figures", f"{{{data}}}")}
<script>{script}</script>
</body>
</html>
"""


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (files("grace_moe.report") / name).read_text(encoding="utf-8")
