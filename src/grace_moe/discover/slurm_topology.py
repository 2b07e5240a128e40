"""Slurm's topology.conf: switches (`topology/tree`) and blocks (`topology/block`), https://slurm.schedmd.com/topology.conf.html."""

from __future__ import annotations

import re

from grace_moe.discover.fabric import MOST_HOSTS, MOST_LAYERS, Fabric
from grace_moe.errors import TopologyError

_MEND = "see slurm.schedmd.com/topology.conf.html"
_WORD = re.compile(r"(\w+)=(\S+)")
_PART = re.compile(r"([^\[\],]*)\[([\d,\-]+)\]|([^\[\],]+)")


def read_slurm(text: str, source: str) -> Fabric:
    """The switches and blocks of a topology.conf.

    Raises:
        TopologyError: not one, a list of hosts that can't be read or is too long, a switch under itself, or a host under two.
    """
    parent: dict[str, str] = {}
    leaf: dict[str, str] = {}
    block: dict[str, str] = {}
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), 1):
        words = {key.lower(): value for key, value in _WORD.findall(line.partition("#")[0])}
        where = f"line {number}"
        if "switchname" in words:
            name = words["switchname"]
            _put(leaf, words.get("nodes", ""), name, source, where)
            _put(parent, words.get("switches", ""), name, source, where)
        elif "blockname" in words:
            _put(block, words.get("nodes", ""), words["blockname"], source, where)
    if not leaf and not block:
        raise TopologyError(source, "SwitchName", "no line gives a switch or block its nodes", _MEND)
    above = {switch: _above(switch, parent, source) for switch in set(leaf.values())}
    return Fabric(source=source, layers={host: above[switch] for host, switch in leaf.items()}, domains=block)


def host_list(text: str, source: str, where: str) -> list[str]:
    """The names of Slurm's expression, in order.

    >>> host_list("n[08-10,12],login", "topology.conf", "line 1")
    ['n08', 'n09', 'n10', 'n12', 'login']

    Raises:
        TopologyError: not such an expression, or of too many names.
    """
    found: list[str] = []
    at = 0
    while at < len(text):
        names = [""]
        while at < len(text) and text[at] != ",":
            part = _PART.match(text, at)
            if part is None or part.end() == at:
                raise TopologyError(source, where, f"{text!r} is not a list of names", _MEND)
            ends = [""] if part[2] is None else _numbers(part[2], source, where)
            if (len(found) + len(names) * len(ends)) > MOST_HOSTS:
                raise TopologyError(source, where, f"over {MOST_HOSTS} names", "is it the right file?")
            names = [name + (part[1] if part[3] is None else part[3]) + end for name in names for end in ends]
            at = part.end()
        found += names
        at += 1
    return found


def _numbers(text: str, source: str, where: str) -> list[str]:
    """Of `08-10,12`: with the zeros of each range's first number."""
    found: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if match is None or (last := int(match[2] or match[1])) < int(match[1]):
            raise TopologyError(source, where, f"[{text}] is not a list of ranges", _MEND)
        if len(found) + last - int(match[1]) >= MOST_HOSTS:
            raise TopologyError(source, where, f"over {MOST_HOSTS} names", "is it the right file?")
        found += [f"{number:0{len(match[1])}d}" for number in range(int(match[1]), last + 1)]
    return found


def _put(where_is: dict[str, str], names: str, above: str, source: str, where: str) -> None:
    for name in host_list(names, source, where):
        if where_is.setdefault(name, above) != above:
            raise TopologyError(source, where, f"{name} is under {where_is[name]} and {above}", "leave one of them out")
    if len(where_is) > MOST_HOSTS:
        raise TopologyError(source, where, f"over {MOST_HOSTS} names", "is it the right file?")


def _above(switch: str, parent: dict[str, str], source: str) -> tuple[str, ...]:
    found = [switch]
    while found[-1] in parent:
        found.append(parent[found[-1]])
        if len(found) > MOST_LAYERS:
            raise TopologyError(source, f"SwitchName={switch}", f"over {MOST_LAYERS} switches above it, or it is above itself", _MEND)
    return tuple(found)
