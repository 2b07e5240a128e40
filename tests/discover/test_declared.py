"""What is declared: each reader by a small case, what it refuses, and how launchers number their ranks."""

import json
import sys
import types

import pytest

from grace_moe.discover.launcher import declared_by_launcher, declared_by_machine, wrong_sizes
from grace_moe.discover.link_kinds import nvml_link_kinds
from grace_moe.discover.rank_facts import RankFacts, facts_of_this_rank
from grace_moe.discover.reading import declarations_of, read_declared
from grace_moe.discover.slurm_topology import host_list
from grace_moe.errors import TopologyError

from .samples import NVIDIA_SMI, SLURM, TOPOGRAPH, facts


def read(tmp_path, text):
    path = tmp_path / "declared"
    path.write_text(text)
    return read_declared(str(path))


def groups_of(declared, ranks):
    return [declaration.groups for declaration in declarations_of(declared, ranks)]


FOUR_HOSTS = facts(["n0", "n1", "n2.cluster", "n3"])
TWO_AND_TWO = ((0, 1), (2, 3))


def test_slurm_groups_hosts_by_switch(tmp_path):
    declared = read(tmp_path, SLURM)
    assert groups_of(declared, FOUR_HOSTS) == [TWO_AND_TWO]  # the switch above both and the one block say nothing
    assert declared.layers["n3"] == ("s1", "top")


def test_topograph_groups_hosts_by_domain_and_switch(tmp_path):
    declared = read(tmp_path, json.dumps(TOPOGRAPH))
    assert groups_of(declared, FOUR_HOSTS) == [TWO_AND_TWO]
    assert declared.domains == {"n0": "d0", "n1": "d0", "n2": "d1", "n3": "d1"}
    assert declared.layers["n2"] == ("leaf-b", "spine")


def test_nvidia_smi_groups_accelerators_by_nvlink_on_each_host(tmp_path):
    ranks = facts(["a"] * 4 + ["b"] * 4, LOCAL_RANK=[0, 1, 2, 3] * 2)
    by_nvlink, by_socket = groups_of(read(tmp_path, NVIDIA_SMI), ranks)
    assert by_nvlink == by_socket == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_sglang_costs_and_shorthands_declare_nodes(tmp_path):
    costs = [[0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 1], [4, 4, 1, 0]]
    for declared in (read(tmp_path, json.dumps({"rank_cost_matrix": costs})), read_declared("2x2")):
        (declaration,) = declarations_of(declared, FOUR_HOSTS)
        assert declaration.nodes
        assert declaration.groups == TWO_AND_TWO


def test_a_tier_of_a_topology_of_ours_is_declared_too(tmp_path):
    value = {
        "nodes": [{"devices": [{}, {}, {}, {}]}],
        "links": {"pair": {"bandwidth_bytes_per_s": 1e9, "latency_s": 0, "groups": [[1, 0]]}},
    }
    assert groups_of(read(tmp_path, json.dumps(value)), FOUR_HOSTS) == [((0, 1, 2, 3),), ((0, 1), (2,), (3,))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "declares no topology"),
        ("SwitchName=s0 Nodes=n[0-", "not a list of names"),
        ("SwitchName=s0 Nodes=n[3-1]", "not a list of ranges"),
        ("SwitchName=s0 Nodes=n[0-999999999]", "over 65536 names"),
        ("SwitchName=s0 Nodes=a[0-999]b[0-999]", "over 65536 names"),
        ("SwitchName=s0 Nodes=a\nSwitchName=s1 Nodes=a", "under s0 and s1"),
        ("SwitchName=s0 Nodes=a Switches=s0", "above itself"),
        ("SwitchName=s0", "its nodes"),
        ('{"instances": []}', "1 to 65536 instances"),
        ('{"instances": [{}]}', "instances[0].id"),
        ('{"instances": [{"id": "a", "network_layers": [1]}]}', "network_layers"),
        ('{"instances": [{"id": "a"}, {"id": "a"}]}', "there twice"),
        ("GPU0 GPU1\nGPU0 X NV1", "GPU1"),
        ("GPU0 GPU1\nGPU0 X NV1\nGPU1 SYS X", "not the same both ways"),
        ("GPU0 GPU2\nGPU0 X NV1", "no columns"),
    ],
)
def test_what_is_damaged_is_refused_in_a_line(tmp_path, text, words):
    with pytest.raises(TopologyError, match="declared: ") as error:
        read(tmp_path, text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_other_clusters_are_refused(tmp_path):
    with pytest.raises(TopologyError, match="elsewhere is not there"):
        declarations_of(read(tmp_path, SLURM), facts(["n0", "elsewhere"]))
    with pytest.raises(TopologyError, match="8 devices, but 4 ranks run"):
        declarations_of(read_declared("2x4"), FOUR_HOSTS)
    with pytest.raises(TopologyError, match="local rank 7"):
        declarations_of(read(tmp_path, NVIDIA_SMI), facts(["a"], LOCAL_RANK=[7]))


def test_slurm_host_lists():
    assert host_list("r[1-2]n[09-10]", "f", "l") == ["r1n09", "r1n10", "r2n09", "r2n10"]
    assert host_list("", "f", "l") == []


def test_launchers_declare_nodes():
    torchrun = facts("aabb", GROUP_RANK=[0, 0, 1, 1], LOCAL_RANK=[0, 1, 0, 1], LOCAL_WORLD_SIZE=[2] * 4)
    slurm = facts("aabb", SLURM_NODEID=[0, 0, 1, 1])
    openmpi = facts("aabb", OMPI_COMM_WORLD_LOCAL_RANK=[0, 1, 0, 1], OMPI_COMM_WORLD_LOCAL_SIZE=[2] * 4)
    plain = facts("aabb", LOCAL_RANK=[0, 1, 0, 1])
    for ranks in (torchrun, slurm, openmpi, plain):
        assert [d.groups for d in declared_by_launcher(ranks)] == [TWO_AND_TWO]
        assert wrong_sizes(ranks) == []
    assert declared_by_launcher(facts("aa")) == []
    assert declared_by_launcher(facts("aa", GROUP_RANK=["0", "x"])) == []


def test_a_local_world_size_that_is_not_so_is_told():
    ranks = facts("aabb", GROUP_RANK=[0, 0, 1, 1], LOCAL_RANK=[0, 1, 0, 1], LOCAL_WORLD_SIZE=[4] * 4)
    assert wrong_sizes(ranks) == [
        "LOCAL_WORLD_SIZE says 4 ranks on the node of rank 0, which has 2",
        "LOCAL_WORLD_SIZE says 4 ranks on the node of rank 2, which has 2",
    ]


def test_sockets_are_declared_where_ranks_are_on_one_each():
    ranks = [RankFacts(host="a", machine="a", package=package, numa=None if package else 0) for package in (0, 0, 1, 1)]
    assert [d.groups for d in declared_by_machine(ranks)] == [TWO_AND_TWO]  # NUMA nodes are not known of all
    assert declared_by_machine(ranks[:2]) == []


def test_the_kernel_tells_of_an_accelerators_numa_node(tmp_path):
    device = tmp_path / "bus/pci/devices/0000:1b:00.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    assert facts_of_this_rank(pci_address="0000:1B:00.0", system=tmp_path).numa == 1
    (device / "numa_node").write_text("-1\n")
    assert facts_of_this_rank(pci_address="0000:1b:00.0", system=tmp_path).numa is None


def test_cores_tell_of_sockets_and_numa_nodes(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 3}, raising=False)
    for node, cores in ((0, "0-1"), (1, "2-3")):
        (tmp_path / f"devices/system/node/node{node}").mkdir(parents=True)
        (tmp_path / f"devices/system/node/node{node}/cpulist").write_text(cores)
    for core in range(4):
        folder = tmp_path / f"devices/system/cpu/cpu{core}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(str(core // 2))
    found = facts_of_this_rank(system=tmp_path)
    assert (found.numa, found.package) == (1, 1)


def test_nvml_is_asked_where_it_is_there(monkeypatch):
    """By a stand-in of nvidia-ml-py: two accelerators with NVLink, and one on another socket."""
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = RuntimeError
    nvml.NVML_P2P_CAPS_INDEX_NVLINK, nvml.NVML_P2P_STATUS_OK = 2, 0
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
    nvml.nvmlDeviceGetCount = lambda: 3
    handles = [object() for _ in range(3)]
    nvml.nvmlDeviceGetHandleByIndex = lambda index: handles[index]
    nvml.nvmlDeviceGetP2PStatus = lambda one, other, what: 0 if handles[2] not in (one, other) else 1
    nvml.nvmlDeviceGetTopologyCommonAncestor = lambda one, other: 50
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = nvml_link_kinds()
    assert found.kinds == (("X", "NV1", "SYS"), ("NV1", "X", "SYS"), ("SYS", "SYS", "X"))
    nvml.nvmlDeviceGetCount = lambda: (_ for _ in ()).throw(RuntimeError("no permission"))
    assert nvml_link_kinds() is None
