"""How tokens reach their experts and come back: one file a way, behind one pair of methods."""

from grace_moe.runtime.dispatch.auto import AutoDispatcher
from grace_moe.runtime.dispatch.flat import FlatDispatcher
from grace_moe.runtime.dispatch.hierarchical import HierarchicalDispatcher
from grace_moe.runtime.dispatch.model import Dispatcher, Received
from grace_moe.runtime.dispatch.reference import reference_moe, reference_placed

__all__ = ["AutoDispatcher", "Dispatcher", "FlatDispatcher", "HierarchicalDispatcher", "Received", "reference_moe", "reference_placed"]
