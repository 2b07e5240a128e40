"""The probe that every job has: the balancer's map, the weights in each slot, and what rearrangements moved."""

import hashlib

import torch

_moved = []


def install():
    from vllm.distributed.eplb import eplb_state

    plain = eplb_state.rearrange_expert_weights_inplace

    def rearrange(old, new, weights, buffer, group, communicator, is_profile=False, rank_mapping=None):
        if not is_profile:
            _moved.append(int((torch.as_tensor(old) != torch.as_tensor(new)).sum()))
        return plain(old, new, weights, buffer, group, communicator, is_profile, rank_mapping)

    eplb_state.rearrange_expert_weights_inplace = rearrange


def report(worker):
    """`map`: `[layers, slots]` experts; `digests`: `[layers, slots of this rank]`; `moved`: slots, by rearrangement."""
    balancer = getattr(worker.model_runner, "eplb_state", None)
    if balancer is None or not balancer.model_states:
        return {}
    (state,) = balancer.model_states.values()
    return {
        "map": state.physical_to_logical_map.tolist(),
        "digests": [[_digest(parts, slot) for slot in range(len(parts[0]))] for parts in state.model.expert_weights],
        "moved": _moved,
    }


def _digest(parts, slot):
    return hashlib.sha256(b"".join(part[slot].contiguous().view(torch.uint8).numpy().tobytes() for part in parts)).hexdigest()[:16]
