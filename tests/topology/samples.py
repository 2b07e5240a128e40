"""Topologies, drawn."""

from hypothesis import strategies as st

from grace_moe.topology import Device, Link, Node, Tier, Topology

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=0.0)


positive = st.floats(min_value=1e-300, max_value=1e300)


links = st.builds(Link, bandwidth_bytes_per_s=positive, latency_s=st.floats(0, 1e300), shared_bytes_per_s=st.none() | positive)


names = st.text(st.characters(codec="utf-8"), max_size=8)


devices = st.builds(Device, name=names, memory_bytes=st.none() | st.integers(1, 2**70), relative_speed=positive)


nodes = st.builds(Node, name=names, devices=st.lists(devices, min_size=1, max_size=3).map(tuple))


tier_names = st.lists(names.filter(lambda name: name not in ("intra_node", "cross_node")), max_size=2, unique=True)


@st.composite
def topologies(draw):
    of = tuple(draw(st.lists(nodes, min_size=1, max_size=3)))
    count = sum(len(node.devices) for node in of)
    row = st.lists(positive, min_size=count, max_size=count).map(tuple)
    matrix = draw(st.none() | st.lists(row, min_size=count, max_size=count).map(tuple))
    cut = draw(st.integers(0, count))
    tiers = tuple(
        Tier(name=name, link=draw(links), groups=(tuple(range(cut)), tuple(range(cut, count)))) for name in sorted(draw(tier_names))
    )
    return Topology(
        nodes=of,
        intra_node=draw(links),
        cross_node=draw(links),
        bandwidth=matrix,
        tiers=tiers,
        hardware=draw(st.none() | names),
        calibration=draw(st.none() | st.just({"fits": []})),
    )
