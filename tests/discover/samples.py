"""Files that declare topologies, and what ranks know of themselves."""

from grace_moe.discover.rank_facts import RankFacts

SLURM = """# two racks
SwitchName=s0 Nodes=n[0-1]
SwitchName=s1 Nodes=n[2-3] LinkSpeed=100
SwitchName=top Switches=s[0-1]
BlockName=b0 Nodes=n[0-3]
"""
TOPOGRAPH = {
    "instances": [
        {"id": "n0", "type": "H100", "network_layers": ["leaf-a", "spine"], "attributes": {"nvlink": "d0"}},
        {"id": "n1", "network_layers": ["leaf-a", "spine"], "labels": {"accelerator.topograph.run/domain": "d0"}},
        {"id": "n2", "network_layers": ["leaf-b", "spine"], "labels": {"accelerator.topograph.run/domain": "d1"}},
        {"id": "n3", "network_layers": ["leaf-b", "spine"], "attributes": {"nvlink": "d1"}},
    ]
}
NVIDIA_SMI = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV4\tSYS\tSYS\tPIX\t0-31\t0\t\tN/A
GPU1\tNV4\t X \tSYS\tSYS\tPXB\t0-31\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tNV4\tSYS\t32-63\t1\t\tN/A
GPU3\tSYS\tSYS\tNV4\t X \tSYS\t32-63\t1\t\tN/A
NIC0\tPIX\tPXB\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def facts(hosts, **variables):
    """A rank on each host, with variables by rank."""
    return [
        RankFacts(host=host, machine=host, variables={name: str(values[rank]) for name, values in variables.items()})
        for rank, host in enumerate(hosts)
    ]
