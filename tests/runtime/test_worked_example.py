"""The worked example of docs/adapt.md: its commands as they stand, the picture that they make, and completions as without moves."""

import json
import re
import runpy
import shlex
import sys

import pytest

torch = pytest.importorskip("torch")

from grace_moe.cli import main
from grace_moe.embedded import embedded_model
from tests.house import ROOT

PAGE, PICTURE = ROOT / "docs" / "adapt.md", ROOT / "docs" / "images" / "follow.svg"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def commands():
    """The indented lines of the section, but for the first, which finds the model."""
    section = PAGE.read_text(encoding="utf-8").split("\n## A worked example\n")[1].split("\n## ")[0]
    first, *rest = re.findall(r"^    (.*)$", section, re.MULTILINE)
    assert first.startswith("MODEL=$(python -c")
    return rest


def do(line, capfd, monkeypatch):
    """A command in this process; what it prints goes where the line says."""
    words = shlex.split(line.replace("$MODEL", str(embedded_model())))
    words, output = (words[:-2], words[-1]) if words[-2] == ">" else (words, None)
    capfd.readouterr()
    if words[0] == "grace-moe":
        with pytest.raises(SystemExit) as end:
            main(words[1:])
        assert not end.value.code, capfd.readouterr().err
    else:
        assert words[0] == "python"
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    if output is not None:
        with open(output, "w") as file:
            file.write(capfd.readouterr().out)


class Picture:
    """What an SVG of the example shows."""

    def __init__(self, text):
        self.labels = re.findall(r"<text[^>]*>([^<]*)</text>", text)
        points = [[float(number) for number in NUMBER.findall(line)] for line in re.findall(r'points="([^"]*)"', text)]
        self.lines = [(numbers[::2], numbers[1::2]) for numbers in points]


@pytest.mark.ranks(2)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_is_what_its_commands_make(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for line in commands():
        do(line, capfd, monkeypatch)
    made, shown = (Picture((folder / "follow.svg").read_text(encoding="utf-8")) for folder in (tmp_path, PICTURE.parent))
    assert [NUMBER.sub("#", label) for label in made.labels] == [NUMBER.sub("#", label) for label in shown.labels]
    assert "turns to code, step 30" in made.labels
    assert len(made.lines) == len(shown.lines) == 4
    for (xs, ys), (shown_xs, shown_ys) in zip(made.lines, shown.lines, strict=True):
        assert xs == shown_xs
        off = sorted(abs(y - other) for y, other in zip(ys, shown_ys, strict=True))
        assert off[len(off) // 2] <= 8  # pixels of 150: another processor may round a router's near tie otherwise
    stays, follows = (json.loads((tmp_path / name).read_text())["runs"][0] for name in ("stays.json", "follows.json"))
    assert [row["tokens"] for row in follows["completions"]] == [row["tokens"] for row in stays["completions"]]
    assert follows["adapt"]["alive"]
    assert follows["adapt"]["rolled_back"] == 0
