"""Whether the names in a recording are such as there may be: its layers, its model, its data."""

from collections.abc import Iterator, Sequence

from grace_moe.files import MAX_LAYER_ID, MAX_LAYERS

Fault = tuple[str, str, str]
"""Field, problem and mend."""


def faults_of_names(layers: int, layer_ids: Sequence[object], model: str, dataset: str) -> Iterator[Fault]:
    """What is wrong with the numbers of so many MoE layers and with the names; nothing where all is well."""
    if len(layer_ids) != layers or len(set(layer_ids)) != len(layer_ids):
        yield "layer_ids", f"{len(layer_ids)} numbers for {layers} layers", "name each layer once"
    if layers > MAX_LAYERS:
        yield "layer_ids", f"{layers} layers are over the limit of {MAX_LAYERS}", "is it the right file?"
    for layer in layer_ids:
        if type(layer) is not int or not 0 <= layer <= MAX_LAYER_ID:
            yield "layer_ids", f"{layer!r} is not in 0..{MAX_LAYER_ID}", "give the model's own numbers of its layers"
    for name, text in (("model", model), ("dataset", dataset)):
        if text.encode(errors="replace").decode() != text:
            yield name, f"{text!r} has bytes that are no text", "give it another name"
