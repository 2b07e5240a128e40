"""The pages that ship with the source: their links lead somewhere, their snippets run, and what they name exists."""

import importlib
import re
import statistics
from pathlib import Path
from urllib.parse import unquote

import pytest

from grace_moe.trace import synthetic_trace
from tests.house import ROOT, is_package, modules

PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(p for folder in ("docs", "benchmarks", "src", "contract", "tools") for p in (ROOT / folder).rglob("*.md")),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:src|tests|docs|benchmarks|contract|tools|constraints|examples)/[\w./-]+)(?: [^`]*)?`")
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
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    for name in NAMED.findall(prose(page)):
        assert (ROOT / name).exists(), name


README = ROOT / "README.md"
HOUSE = ROOT / "docs" / "how-it-works.md"
PERFORMANCE = ROOT / "docs" / "performance.md"


def test_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 130
    words = re.sub(r"^[|#!].*$|^ {4}.*$|^<!--.*$", "", prose(README), flags=re.MULTILINE)
    sentences = [s for s in re.split(r"(?<=[.:?])\s+", words) if s.strip()]
    assert statistics.median(len(s.split()) for s in sentences) <= 16


def test_readme_snippets_run(tmp_path, monkeypatch):
    """As they stand, where there is a trace.safetensors."""
    monkeypatch.chdir(tmp_path)
    synthetic_trace(tokens=160, layers=1, experts=16, top_k=4).save(tmp_path / "trace.safetensors")
    snippets = [code for language, code in FENCE.findall(README.read_text(encoding="utf-8")) if language == "python"]
    assert snippets
    for code in snippets:
        exec(compile(code, str(README), "exec"), {})
    assert (tmp_path / "plan.json").exists()


def test_every_folder_of_the_house_has_a_sentence():
    table = re.findall(r"^\| (`.*?`) \|", HOUSE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name.rstrip("/") for cell in table for name in re.findall(r"`([\w/.]+)`", cell)}
    folders = {module.removeprefix("grace_moe.").replace(".", "/") for module in modules() if is_package(module)} - {"grace_moe"}
    assert {name for name in told if not name.endswith(".py")} == folders


@pytest.mark.parametrize(
    ("page", "below"), [("how-it-works.md", ""), ("method.md", ""), ("planner.md", "planning/grace"), ("runtime.md", "runtime")]
)
def test_files_of_the_package_that_a_page_names_exist(page, below):
    names = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?|[a-z_]+\.py)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert names
    package = ROOT / "src" / "grace_moe"
    for name in names:
        assert any((home / name).exists() for home in (package / below, package, ROOT)), name


def test_every_page_of_results_is_listed_with_its_script():
    text = PERFORMANCE.read_text(encoding="utf-8")
    for page in (ROOT / "benchmarks" / "results").glob("*.md"):
        rows = [line for line in text.splitlines() if line.startswith("| [") and page.name in line]
        assert len(rows) == 1, page.name
        assert re.search(r"`benchmarks/\w+\.py", rows[0]), page.name
        assert re.search(r"\d{4}-\d\d-\d\d \|$|\d \|$", rows[0]), page.name


def test_bench_runs_scripts_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"^BENCHMARKS := (.*)$", makefile, re.MULTILINE)
    named = {*names.split(), *re.findall(r"benchmarks/(\w+)\.py", makefile)}
    for name in named:
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


def cited(pattern):
    """(module, match) of a pattern in the package's source."""
    return [(module, match) for module, path in modules().items() for match in re.findall(pattern, path.read_text(encoding="utf-8"))]


def test_pages_that_the_source_cites_exist():
    for module, (page, anchor) in cited(r"((?:docs|benchmarks)/[\w/-]+\.(?:md|py))(?:#([\w-]+))?"):
        assert (ROOT / page).exists(), (module, page)
        if anchor:
            assert anchor in anchors(ROOT / page), (module, page, anchor)


def test_the_source_cites_only_pages_that_ship():
    assert cited(r"METHOD\.md|DESIGN\.md|STYLE\.md") == []


def test_modules_that_docstrings_name_exist():
    """`choice.joint`, `evaluation.Evaluation`: from the package's root."""
    rooms = "|".join(sorted({name.split(".")[1] for name in modules() if "." in name}))
    for module, name in cited(rf"`((?:{rooms})(?:\.\w+)+)`"):
        home, _, last = f"grace_moe.{name}".rpartition(".")
        assert f"{home}.{last}" in modules() or hasattr(importlib.import_module(home), last), (module, name)
