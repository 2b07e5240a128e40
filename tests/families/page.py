"""The table of families as a page, from what a run saw."""

import platform
from collections.abc import Mapping
from datetime import date
from typing import Any

import torch
import transformers

from tests.families.examination import CLOSE
from tests.families.names import FAMILIES, LACKING

_HEAD = """# Model families

Every family with routed experts that Transformers {transformers} has, as a tiny random checkpoint of 3 layers: recorded on one process, its
ids compared with what its router said; planned on 2x2 with replicas; run on four processes over gloo in float32 by hierarchical and flat
dispatch, and compared with one process. Text alone. Written by `make families` on {date}, with torch {torch} and Python {python} on a CPU.

{right} of {all} families are recorded exactly and run losslessly: equal tokens, and logits within {close:g}.

| family | class in Transformers | layers x experts, top-k | recorded | tokens | logits off by |
|---|---|---|---|---|---|
"""


def page(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, with a row a family.

    Args:
        outcomes: per family the fields of its `Outcome`, or `error` alone.
    """
    rows = [_row(family, outcomes.get(family)) for family in FAMILIES]
    right = sum(bool(outcome.get("right")) for family, outcome in outcomes.items() if family not in LACKING)
    head = _HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        python=platform.python_version(),
        date=date.today().strftime("%d %B %Y").lstrip("0"),
        right=right,
        all=len(FAMILIES),
        close=CLOSE,
    )
    return head + "\n".join(rows) + "\n\n" + _lacking()


def _row(family: str, seen: Mapping[str, Any] | None) -> str:
    if family in LACKING:
        return f"| {family} | | | not run (below) | | |"
    if seen is None:
        return f"| {family} | | | not run | | |"
    if "error" in seen:
        return f"| {family} | | | **{seen['error']}** | | |"
    said = {True: "exact", False: "**not exact**"}[seen["recorded"]], {True: "equal", False: "**not equal**"}[seen["tokens"]]
    sizes = f"{seen['layers']} x {seen['experts']}, {seen['top_k']}"
    return f"| {family} | {seen['model_class']} | {sizes} | {said[0]} | {said[1]} | {seen['logits']:.0e} |"


def _lacking() -> str:
    return "What Transformers lacks of the others:\n\n" + "\n".join(f"- {family}: {why}." for family, why in LACKING.items()) + "\n"
