"""Families whose experts Transformers can neither place nor record: how each routes, computes and is sharded, one a file."""

from grace_moe.runtime.model.adapters.adapter import Adapter, PairSums
from grace_moe.runtime.model.adapters.dbrx import DBRX
from grace_moe.runtime.model.adapters.jetmoe import JETMOE
from grace_moe.runtime.model.adapters.llama4 import LLAMA4
from grace_moe.runtime.model.adapters.longcat_flash import LONGCAT_FLASH

ADAPTERS = {adapter.block: adapter for adapter in (DBRX, JETMOE, LLAMA4, LONGCAT_FLASH)}
"""By the class of the MoE block."""

__all__ = ["ADAPTERS", "Adapter", "PairSums"]
