"""`run --predict`: the bytes that a replay of the run's own routing predicts are those that were sent."""

import json

import pytest

torch = pytest.importorskip("torch")

from grace_moe.cli import main
from grace_moe.cost.transport import DISPATCHES
from grace_moe.embedded import embedded_model

from .conftest import placement_of

pytestmark = pytest.mark.usefixtures("warm")


def run(capsys, tmp_path, *arguments):
    """Contiguous experts: nothing is drawn."""
    placement_of("2x2", lambda e: (e // 16,), layers=4, experts=64).save(tmp_path / "plan.json")
    texts = (
        "--text",
        str(embedded_model() / "prose.txt"),
        "--requests",
        "5",
        "--prompt-tokens",
        "70",
        "--new-tokens",
        "3",
        "--batch-size",
        "2",
    )
    with pytest.raises(SystemExit) as exit_:
        main(["run", str(embedded_model()), "--placement", str(tmp_path / "plan.json"), "--local", "2x2", *texts, *arguments])
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err


@pytest.mark.ranks
def test_predicted_is_sent_to_the_byte(capsys, tmp_path):
    """Every dispatch, auto with large prefills and tiny steps; vanilla by the routing of the others."""
    dispatches = [word for dispatch in DISPATCHES for word in ("--dispatch", dispatch)]
    code, out, err = run(capsys, tmp_path, *dispatches, "--predict", "--ignore-eos", "--json")
    assert code == 0, err
    found = {row["dispatch"]: row for row in json.loads(out)["runs"]}
    assert set(found) == set(DISPATCHES)
    for row in found.values():
        if row["dispatch"] != "vanilla":  # which also sends padding
            assert row["predicted_cross_node_bytes_per_token"] == row["cross_node_bytes_per_token"]
    flat, hierarchical, auto = (found[name]["cross_node_bytes_per_token"] for name in ("flat", "hierarchical", "auto"))
    assert hierarchical < auto < flat


@pytest.mark.ranks
def test_predicted_stands_beside_sent(capsys, tmp_path):
    code, out, err = run(capsys, tmp_path, "--dispatch", "auto", "--predict", "--ignore-eos")
    assert code == 0, err
    assert " KiB a token between nodes (" in out
    assert " predicted), prefill" in out


def test_vanilla_alone_can_not_be_predicted(capsys, tmp_path):
    code, _, err = run(capsys, tmp_path, "--dispatch", "vanilla", "--predict")
    assert code == 2
    assert "--predict: vanilla's routing is inside Transformers; add another --dispatch, whose routing is the same" in err
