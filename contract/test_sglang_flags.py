"""SGLang's command line takes every flag that we print or write of."""

import argparse
import importlib
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from grace_moe.engines import EXPORTERS, Hints, SlotMap
from grace_moe.engines.backends import SGLANG
from sglang_stand_ins import EXPERTS, LAYERS, RANKS, SLOTS, unpacked

pytestmark = unpacked


@pytest.fixture
def parser(sglang, monkeypatch):
    """Of their server's command line."""
    orjson = ModuleType("orjson")  # the one package that its modules want and vLLM's environment has not
    monkeypatch.setitem(sys.modules, "orjson", orjson)
    for name in [n for n in sys.modules if n.startswith("sglang.srt.")]:
        monkeypatch.delitem(sys.modules, name)
    found = argparse.ArgumentParser(allow_abbrev=False)
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(found)
    return found


def test_its_parser_takes_the_flags_that_export_prints(parser, sglang_plan):
    """For every backend that a plan may be for."""
    for backend in SGLANG:
        planned = replace(sglang_plan, provenance={"backend": backend})
        launch = EXPORTERS["sglang"](SlotMap.of(planned), Hints(num_hidden_layers=LAYERS), ()).launch
        words = shlex.split(launch.replace("\\\n", " "))
        assert words[:3] == ["python", "-m", "sglang.launch_server"]
        arguments = parser.parse_args(words[3:])
        assert (arguments.tp_size, arguments.ep_size, arguments.ep_num_redundant_experts) == (RANKS, RANKS, SLOTS - EXPERTS)
        static = arguments.moe_a2a_backend != "none"  # SGLang refuses static choice where every rank has every token
        assert arguments.ep_dispatch_algorithm == ("static" if static else "dynamic")


def test_its_parser_takes_the_flags_of_the_page(parser):
    """Those of online balancing and of recording."""
    text = (Path(__file__).parents[1] / "docs/engines/sglang.md").read_text()
    flags = set(re.findall(r"(?<=[\s`])--(?:eplb|ep|elastic|expert|enable|moe|deepep|init|disable|model)-[a-z0-9-]+", text))
    assert len(flags) > 10
    assert flags - {"--eplb-topology"} <= set(parser._option_string_actions)  # that one is proposed, and the page says so
