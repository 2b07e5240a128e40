"""A tiny random OLMoE and placements for it; made once, nothing is downloaded."""

import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.runtime.generation import Request
from grace_moe.topology import Topology

EXPERTS, LAYERS, TOP_K, VOCABULARY = 16, 2, 4, 96


def make_model(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 16,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_experts": EXPERTS,
            "num_experts_per_tok": TOP_K,
            "max_position_embeddings": 128,
            "pad_token_id": 1,
            "eos_token_id": 0,
            "initializer_range": 0.3,
            **changes,
        }
    )
    transformers.OlmoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny-olmoe"))


def placement_of(shape: str, devices_of_expert, *, layers=LAYERS, experts=EXPERTS) -> Placement:
    """The same placement in every layer; weights even."""
    nodes = [int(n) for n in shape.split("+")] if "+" in shape else None
    if nodes is None:
        topology = Topology.parse(shape)
    else:
        topology = Topology.from_dict({"nodes": [{"devices": [{} for _ in range(n)]} for n in nodes]})
    rows = tuple(tuple(devices_of_expert(e)) for e in range(experts))
    return Placement(
        topology=topology,
        num_experts=experts,
        layers=tuple(LayerPlacement(layer_id=i, devices_of_expert=rows, replica_weights=even_weights(rows)) for i in range(layers)),
    )


def contiguous(num_devices: int):
    return lambda e: (e * num_devices // EXPERTS,)


def scattered_with_replicas(num_devices: int):
    """Unequal groups, and one to all replicas an expert."""

    def devices(e: int) -> tuple[int, ...]:
        draw = random.Random(e)
        return tuple(draw.sample(range(num_devices), draw.choice([1, 1, 2, num_devices])))

    return devices


def requests_of(lengths: list[int], seed: int = 0) -> tuple[Request, ...]:
    draw = random.Random(seed)
    return tuple(Request(request_id=i, prompt=tuple(draw.randrange(2, VOCABULARY) for _ in range(n))) for i, n in enumerate(lengths))
