"""What the figures show."""

import pytest

from grace_moe.report import report_content
from grace_moe.report.figures import DRAWN_DEVICES, figures

from .pages import compared


@pytest.mark.parametrize(("topology", "drawn"), [("2x2", True), ("4x4", True), ("5x4", False)])
def test_many_devices_are_a_matrix(topology, drawn):
    found = report_content(compared(topology, methods=("linear", "grace"), experts=32, layers=1))
    figure = figures(found)["cluster-after"]
    assert (found.topology.num_devices <= DRAWN_DEVICES) == drawn
    assert (figure.data[0].type == "heatmap") != drawn
    if drawn:
        assert len(figure.layout.shapes) == found.topology.num_nodes


def test_many_experts_are_binned(monkeypatch):
    """64 experts and room for 20 rows: four experts a bin, each cell the mean of its 16 (or, by layer, its 4)."""
    found = report_content(compared(methods=("linear", "grace"), experts=64, layers=1))
    whole = figures(found)
    monkeypatch.setattr("grace_moe.report.plot_style.MAX_BINS", 20)
    binned = figures(found)
    affinity, loads = (whole[name].data[0].z for name in ("affinity-after", "expert-load"))
    assert affinity.shape == (64, 64)
    want = affinity.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    assert binned["affinity-after"].data[0].z == pytest.approx(want, abs=0.006)
    assert binned["expert-load"].data[0].z == pytest.approx(loads.reshape(1, 16, 4).mean(axis=2), abs=0.002)
    assert list(binned["expert-load"].data[0].x) == list(range(0, 64, 4))
