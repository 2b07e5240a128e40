"""The page of what was run in which engine, docs/engines/matrix.md, from the contract tests' own results, contract/results.json.

`make contract` writes both. `python contract/matrix.py` writes the page alone. Only the standard library: two environments use it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "contract/results.json"
PAGE = ROOT / "docs/engines/matrix.md"

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt-llm": "TensorRT-LLM", "vllm-ascend": "vllm-ascend"}
"""Engine, as the command line calls it -> its name."""
FEATURES = {
    "record": "its routing becomes a trace",
    "place": "its experts lie as the plan says",
    "static start": "the plan is in place before the first token",
    "near": "a token takes the near replica of an expert, by the plan's weights",
    "joint": "all of a token's experts are chosen together",
    "hierarchical": "a token is sent to each node once, and spread there",
    "re-plan": "replicas follow the engine's loads",
    "requests": "a request goes to the node of its experts",
}
"""Feature -> what it means."""
HOW = {
    "served": "the engine served tokens, in processes of this machine, and they were checked",
    "modules": "the engine's own code was called by a test, outside of a server",
    "form": "a form written from its source was checked, not its own code",
}
"""How real a test is, the most real first."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one test function showed of one feature."""

    engine: str
    feature: str
    how: str
    test: str
    """`test_file.py::test_name`; all its parameters together."""
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run of the contract tests."""

    date: str
    machine: str
    versions: dict[str, str]
    """Engine -> the package that was run or read."""
    shown: tuple[Shown, ...]

    def save(self, path: Path) -> None:
        """Write the run, in an order that doesn't depend on the tests'."""
        ordered = sorted(self.shown, key=lambda one: (one.engine, one.feature, one.test))
        path.write_text(json.dumps(asdict(self) | {"shown": [asdict(one) for one in ordered]}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        """The run that `save` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(**value | {"shown": tuple(Shown(**one) for one in value["shown"])})


def cell(results: Results, engine: str, feature: str) -> str:
    """What the page says of a feature: `failed` where any of its tests did, else how real the best of them is."""
    found = [one for one in results.shown if (one.engine, one.feature) == (engine, feature)]
    if not all(one.passed for one in found):
        return "**failed**"
    return next((how for how in HOW if any(one.how == how for one in found)), "not run")


def page(results: Results) -> str:
    """The page, whole."""
    head = ["engine", *FEATURES, "package"]
    rows = [
        [name, *(cell(results, engine, feature) for feature in FEATURES), results.versions.get(engine, "")]
        for engine, name in ENGINES.items()
    ]
    table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    lines = [
        "# What was run in which engine",
        "",
        f"Written by `make contract` from the results of its tests on {results.date}, on {results.machine}. Not edited by hand.",
        "",
        *table,
        "",
        *(f"- **{how}**: {meaning}." for how, meaning in HOW.items()),
        "- **not run**: no test shows it; the engine's page says what was read in its source.",
        "",
        f"{'; '.join(f'*{feature}*: {meaning}' for feature, meaning in FEATURES.items())}.",
        "",
        "## The tests",
        "",
        "| engine | feature | how | test | |",
        "|---|---|---|---|---|",
        *(
            f"| {ENGINES[one.engine]} | {one.feature} | {one.how} | `contract/{one.test}` | {'passed' if one.passed else '**failed**'} |"
            for engine in ENGINES
            for feature in FEATURES
            for one in results.shown
            if (one.engine, one.feature) == (engine, feature)
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(Results.load(RESULTS)), encoding="utf-8")
