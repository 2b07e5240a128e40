"""Notes that methods leave in a placement's provenance: limits that bit, options that had no effect."""

from collections.abc import Sequence

from grace_moe.planning.task import PlanningTask


def no_replicas(task: PlanningTask, method: str) -> tuple[str, ...]:
    """The note of a method that keeps one copy of each expert, where more were allowed."""
    if task.redundancy in (None, 1):
        return ()
    return (f"redundancy {task.redundancy} has no effect: {method} makes no replicas",)


def by_layer(notes_of_layer: Sequence[tuple[int, Sequence[str]]]) -> tuple[str, ...]:
    """Notes of single layers, each distinct text once: `layers 0, 3: ...`.

    Args:
        notes_of_layer: (layer id, its notes) of each layer.
    """
    layers_of: dict[str, list[int]] = {}
    for layer_id, notes in notes_of_layer:
        for note in notes:
            layers_of.setdefault(note, []).append(layer_id)
    return tuple(f"layer{'s' * (len(ids) > 1)} {', '.join(map(str, ids))}: {note}" for note, ids in layers_of.items())
