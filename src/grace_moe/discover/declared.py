"""What somebody says of a cluster: which ranks belong together, by a launcher, a file or the machine itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from grace_moe.discover.tiers import Groups


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One way to group the ranks."""

    source: str
    """Who says so."""
    groups: Groups
    """Ranks that belong together, each group in order, groups by their first rank."""
    nodes: bool
    """Whether the groups are nodes; else they are parts of nodes, or of the network between them."""


def grouped(keys: Sequence[Hashable]) -> Groups:
    """Ranks by their key.

    >>> grouped(["a", "b", "a"])
    ((0, 2), (1,))
    """
    found: dict[Hashable, list[int]] = {}
    for rank, key in enumerate(keys):
        found.setdefault(key, []).append(rank)
    return tuple(map(tuple, found.values()))


def in_words(groups: Groups) -> str:
    """`2 groups of 4` where all are as large, else `3 groups of 4, 2, 2`."""
    sizes = [len(group) for group in groups]
    alike = f"{sizes[0]}" if len(set(sizes)) == 1 else ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
    return f"{len(groups)} group{'s' * (len(groups) > 1)} of {alike}"
