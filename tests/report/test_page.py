"""The HTML page: the comparison's numbers, nothing from outside, nothing from a file unescaped, the same bytes."""

import base64
import json
import re
import string
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from grace_moe.errors import GraceError, MissingExtraError
from grace_moe.report import html_page, report_content, require_report, sentence, write_report
from grace_moe.report.figures import figures
from grace_moe.report.words import LABELS, cluster, key_numbers

from .pages import COMMAND, compared


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


def test_the_library_and_the_figures_are_unpacked_as_they_were(content, page):
    from plotly.offline import get_plotlyjs

    texts = {}
    for attributes, code in scripts(page):
        if attributes.get("type") == "text/plain":
            data = base64.b85decode(code.replace(",", "<"))[: int(attributes["data-bytes"])]
            texts[attributes["id"]] = zlib.decompress(data).decode()
    assert texts["plotly"] == get_plotlyjs()
    assert sorted(json.loads(texts["figures"])) == sorted(figures(content))
    alphabet = re.search(r'alphabet = "(.*)";', page)[1]
    assert alphabet == string.digits + string.ascii_uppercase + string.ascii_lowercase + "!#$%&()*+-;,=>?@^_`{|}~"


def scripts(page):
    """Attributes and text of each script element."""
    parsed = Elements(page)
    attributes = [found for tag, found in parsed.elements if tag == "script"]
    return zip(attributes, (text for tag, text in parsed.raw if tag == "script" and text.strip()), strict=True)


def test_a_page_of_58_layers_of_256_experts_is_at_most_2_megabytes():
    comparison = compared("8x8", ("grace", "linear"), layers=58, experts=256, top_k=8, tokens=400)
    assert len(html_page(report_content(comparison)).encode()) < 2_000_000


def test_the_same_comparison_gives_the_same_bytes(comparison, content, page):
    assert html_page(report_content(comparison, memory=content.memory, command=COMMAND)) == page


def test_no_text_of_a_file_becomes_markup(comparison):
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'
    names = {"model": evil, "dataset": evil, "source": evil + "\ud800"}
    parts = {name: replace(getattr(comparison, name), **names) for name in ("planned_on", "measured_on")}
    text = html_page(report_content(replace(comparison, **parts), command=evil))
    elements = Elements(text).elements
    assert [tag for tag, _ in elements].count("script") == 3
    assert not [tag for tag, _ in elements if tag == "img"]
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_file_name_that_is_no_text_is_written(comparison, tmp_path):
    evil = replace(comparison, measured_on=replace(comparison.measured_on, source="\ud800 <b>"))
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
    monkeypatch.setattr("grace_moe.report.page.find_spec", {"plotly": None}.get)
    with pytest.raises(MissingExtraError) as error:
        require_report()
    assert str(error.value) == "plotly is not installed; install it with: pip install 'grace-moe[report]'"
    with pytest.raises(MissingExtraError):
        write_report(content, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


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
