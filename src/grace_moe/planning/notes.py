"""Notes that methods leave in a placement's provenance: limits that bit, options that had no effect."""

from collections.abc import Sequence

from grace_moe.planning.task import PlanningTask


def no_replicas(task: PlanningTask, method: str) -> tuple[str, ...]:
    """The note of a method that keeps one copy of each expert, where more were allowed."""
    if task.redundancy in (None, 1, "auto"):
        return ()
    return (f"redundancy {task.redundancy} has no effect: {method} makes no replicas",)


def whole_slots(task: PlanningTask) -> tuple[str, ...]:
    """The note of a method with equal slots, where whole slots make another redundancy of the one that was asked for."""
    if task.redundancy is None:
        return ()
    slots, devices = task.equal_slots, task.num_devices
    became = slots * devices / task.num_experts
    if task.redundancy != "auto" and abs(became - task.redundancy) < 1e-9:
        return ()
    return (f"redundancy {task.redundancy} became {became:.2f}: {slots} slot{'s' * (slots > 1)} on each of {devices} devices",)


def slots_by_memory(task: PlanningTask) -> tuple[str, ...]:
    """The note of a method whose slots follow memory: as `whole_slots` where memory makes no difference."""
    slots = task.slots_by_memory
    if len(set(slots)) == 1:
        return whole_slots(task)
    return (f"slots by memory: {', '.join(map(str, slots[:16]))}{', ...' * (len(slots) > 16)}",)


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
