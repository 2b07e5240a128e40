"""The pages that ship with the source: their links lead somewhere, their snippets run, and what they name exists."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.house import ROOT

PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(p for folder in ("docs", "benchmarks", "src", "contract", "tools") for p in (ROOT / folder).rglob("*.md")),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:src|tests|docs|benchmarks|contract|tools|constraints)/[\w./-]+)(?: [^`]*)?`")
"""A path in backticks, alone or with arguments, from the root of the repository."""


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, punctuation dropped, spaces to hyphens."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() or target in OPEN, target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    for name in NAMED.findall(prose(page)):
        assert (ROOT / name).exists(), name


OPEN = {"planner.md"}
