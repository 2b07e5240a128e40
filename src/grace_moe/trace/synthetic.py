"""Traces with a known structure, for tests, examples and benchmarks of cost (never of quality)."""

import numpy as np

from grace_moe.trace.model import RoutingTrace


def synthetic_trace(
    *,
    tokens: int,
    layers: int = 1,
    experts: int = 64,
    top_k: int = 8,
    clusters: int = 4,
    affinity: float = 0.7,
    skew: float = 0.6,
    requests: int = 16,
    seed: int = 0,
) -> RoutingTrace:
    """Tokens that prefer one hidden cluster of experts, with Zipf-like popularity.

    Args:
        affinity: 0..1, share of the preference that a token's own cluster gets.
        skew: exponent of the experts' popularity; 0 = all alike.
    """
    generator = np.random.default_rng(seed)
    topk_ids = np.empty((tokens, layers, top_k), dtype=np.int16)
    request_ids = np.sort(np.arange(tokens) % max(1, min(requests, tokens))).astype(np.int32)
    request_cluster = generator.integers(0, clusters, size=int(request_ids.max(initial=0)) + 1)
    for layer in range(layers):
        popularity = np.arange(1, experts + 1) ** -skew
        generator.shuffle(popularity)
        cluster_of_expert = generator.permutation(np.arange(experts) % clusters)
        stray = generator.random(tokens) < 0.2
        cluster = np.where(stray, generator.integers(0, clusters, tokens), request_cluster[request_ids])
        own = cluster_of_expert[None, :] == cluster[:, None]
        preference = np.log(popularity)[None, :] + np.where(own, 4.0 * affinity, 0.0)
        gumbel = generator.gumbel(size=(tokens, experts))
        topk_ids[:, layer] = np.argsort(-(preference + gumbel), axis=1, kind="stable")[:, :top_k]
    return RoutingTrace(
        topk_ids=topk_ids,
        num_experts=experts,
        layer_ids=tuple(range(layers)),
        model="synthetic",
        dataset=f"clusters={clusters} affinity={affinity} skew={skew} seed={seed}",
        request_ids=request_ids,
        phase=np.zeros(tokens, dtype=np.uint8),
        source="synthetic trace",
    )
