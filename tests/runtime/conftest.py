"""A tiny random OLMoE and placements for it; made once, nothing is downloaded."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.runtime.job.generation import Request
from grace_moe.topology import Topology
from tests.rank_pool import RankPool


def pytest_generate_tests(metafunc):
    """Every test that starts ranks runs on the CPU and, where there is a GPU, there: over NCCL where each rank has one, else over gloo."""
    if metafunc.definition.get_closest_marker("ranks") is not None:
        none = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
        metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=none)], indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def device(request):
    """Where the ranks of this test compute: they take GPUs where they see any."""
    where = getattr(request, "param", None)
    with pytest.MonkeyPatch.context() as patch:
        if where == "cpu":
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield where


@pytest.fixture(scope="module")
def pool(device):
    """Four ranks for all tests of a module: each piece of work gets what was asked, and its rank's membership."""
    ranks = RankPool()
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two_ranks(device):
    """The same, of two."""
    ranks = RankPool(2)
    yield ranks
    ranks.close()


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


def placement_of(shape: str, devices_of_expert, *, in_decode=None, layers=LAYERS, experts=EXPERTS) -> Placement:
    """The same placement in every layer; weights even. `in_decode`: the one replica of each expert that decode uses."""
    nodes = [int(n) for n in shape.split("+")] if "+" in shape else None
    if nodes is None:
        topology = Topology.parse(shape)
    else:
        topology = Topology.from_dict({"nodes": [{"devices": [{} for _ in range(n)]} for n in nodes]})
    rows = tuple(tuple(devices_of_expert(e)) for e in range(experts))
    decode = () if in_decode is None else tuple(tuple(float(d == in_decode(e)) for d in row) for e, row in enumerate(rows))
    layer = LayerPlacement(layer_id=0, devices_of_expert=rows, replica_weights=even_weights(rows), decode_weights=decode)
    return Placement(topology=topology, num_experts=experts, layers=tuple(replace(layer, layer_id=i) for i in range(layers)))


def contiguous(num_devices: int):
    return lambda e: (e * num_devices // EXPERTS,)


def one_on_each_node(num_devices: int):
    """Two nodes: under TAR a token stays on its node, and nothing is drawn."""
    half = num_devices // 2
    return lambda e: (e % half, half + e % half)


def only_one(num_devices: int):
    """The replica of `one_on_each_node` that decode uses: of each run of three experts on the first node, then the second."""
    half = num_devices // 2
    return lambda e: (e // 3) % 2 * half + e % half


def scattered_with_replicas(num_devices: int):
    """Unequal groups, and one to all replicas an expert."""

    def devices(e: int) -> tuple[int, ...]:
        draw = random.Random(e)
        return tuple(draw.sample(range(num_devices), draw.choice([1, 1, 2, num_devices])))

    return devices


def requests_of(lengths: list[int], seed: int = 0) -> tuple[Request, ...]:
    draw = random.Random(seed)
    return tuple(Request(request_id=i, prompt=tuple(draw.randrange(2, VOCABULARY) for _ in range(n))) for i, n in enumerate(lengths))
