"""TensorRT-LLM's schema. The package needs CUDA to install, so this is an equal of its `MoeLoadBalancerConfig` (a strict pydantic model),
written from its source, and of what its loader does with it; not its own code."""

import numpy as np
import pydantic
import pytest
import yaml

from grace_moe.engines import EXPORTERS, Hints, SlotMap

SLOTS = SlotMap(physical_to_logical=np.array([[0, 1, 2, 0], [2, 1, 0, 2]], dtype=np.int32), layer_ids=(1, 2), num_experts=3, num_ranks=2)


class MoeLoadBalancerConfig(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    num_slots: int | None = None
    initial_global_assignments: dict[int, list[int]] | None = None
    layer_updates_per_iter: int = 0


@pytest.mark.shows("tensorrt-llm", "place", "form")
@pytest.mark.shows("tensorrt-llm", "static start", "form")
def test_the_schema_takes_what_we_export():
    value = yaml.safe_load(EXPORTERS["tensorrt-llm"](SLOTS, Hints(), (3,)).data)
    config = MoeLoadBalancerConfig(**value)
    assert config.num_slots % SLOTS.num_ranks == 0
    for layer in (1, 2, 3):  # its loader looks every MoE layer up, those for further tokens too
        assert len(config.initial_global_assignments[layer]) == config.num_slots
    with pytest.raises(pydantic.ValidationError):
        MoeLoadBalancerConfig(**value, ep_size=2)
