"""`make gpu`: its table is one that calibrate reads, and without a GPU it says so in a line."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from grace_moe.cost.calibrate import calibrate
from grace_moe.cost.tables import read_table

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))]
)
def test_its_table_calibrates(tmp_path, monkeypatch, device):
    from benchmarks import gpu

    monkeypatch.setitem(gpu.SHAPES, "tiny", (32, 32, 2, 8))
    table = tmp_path / "experts.csv"
    monkeypatch.setattr(
        "sys.argv", ["gpu.py", "--device", device, "--shapes", "tiny", "--tokens", "1,8,64", "--rounds", "1", "--table", str(table)]
    )
    gpu.main()
    found = calibrate([read_table(table)])
    assert found.machines == ("CPU" if device == "cpu" else torch.cuda.get_device_name(),)
    assert [kernel.name for kernel in found.calibration.compute] == [f"moe {gpu.USED[device]}"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_skips_itself_in_a_line(tmp_path):
    ran = subprocess.run([sys.executable, SCRIPT, "--table", tmp_path / "t.csv"], capture_output=True, text=True, check=True, timeout=100)
    assert ran.stdout == "gpu: skipped, torch sees no GPU here\n"
    assert not (tmp_path / "t.csv").exists()
