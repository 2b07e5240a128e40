"""Forward passes that several ranks recorded alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence


def repeated_passes(ranks: Sequence[Mapping[Hashable, Hashable]]) -> list[set[Hashable]]:
    """Per rank, the passes that an earlier rank recorded too, as the ranks of tensor parallelism do.

    A rank repeats another where they agree on every pass that both have. Where they differ in one they had requests of their own (data
    parallelism), and passes that are alike all the same, of identical prompts, are different requests.

    Args:
        ranks: of each rank, what it recorded in each pass: anything that is equal where the recordings are.
    """
    repeated: list[set[Hashable]] = []
    for index, rank in enumerate(ranks):
        mine: set[Hashable] = set()
        for earlier in ranks[:index]:
            both = rank.keys() & earlier.keys()
            if all(rank[key] == earlier[key] for key in both):
                mine |= both
        repeated.append(mine)
    return repeated
