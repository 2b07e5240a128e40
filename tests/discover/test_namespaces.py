"""Discovery between network namespaces, whose links are known: two nodes of two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CODE = """
import json, sys, tempfile
from pathlib import Path
import grace_moe.runtime.job.probe
from made_clusters import Cluster
from namespace_clusters import built, run_ranks
from slow_link import clean_up_when_ended

clean_up_when_ended()
cluster = Cluster(partitions=(((0, 1), (2, 3)), ((0, 1, 2, 3),)), rates=(16e6, 2e6), bad=None)
with tempfile.TemporaryDirectory() as name, built(cluster) as names:
    codes = run_ranks(names, Path(name))
    found = json.loads((Path(name) / "found.json").read_text())
print(json.dumps({"codes": codes, "found": found}))
"""


@pytest.mark.ranks
def test_two_nodes_are_found_with_what_their_ranks_share():
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]))
    ran = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=150)
    if "CalledProcessError" in ran.stderr or "No such file or directory: 'ip'" in ran.stderr:
        pytest.skip("namespaces are refused")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["codes"] == [0] * 4
    found = result["found"]
    assert [tier["groups"] for tier in found["discovered"]["tiers"]] == [[[0, 1], [2, 3]], [[0, 1, 2, 3]]]
    assert [len(node["devices"]) for node in found["nodes"]] == [2, 2]
    across = found["links"]["cross_node"]
    assert across["bandwidth_bytes_per_s"] < 2.2e6  # the link's rate; what is measured lacks headers, and a busy machine's time
    assert across["shared_bytes_per_s"] < 3e6  # two ranks, one link
    assert found["links"]["intra_node"]["bandwidth_bytes_per_s"] > 2 * across["bandwidth_bytes_per_s"]
