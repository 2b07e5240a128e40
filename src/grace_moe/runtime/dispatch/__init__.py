"""How tokens reach their experts and come back: one file a way, behind one pair of methods."""

from grace_moe.runtime.dispatch.auto import AutoDispatcher
from grace_moe.runtime.dispatch.dispatcher import Dispatcher, Outgoing, Received
from grace_moe.runtime.dispatch.flat import FlatDispatcher
from grace_moe.runtime.dispatch.hierarchical import HierarchicalDispatcher

__all__ = ["AutoDispatcher", "Dispatcher", "FlatDispatcher", "HierarchicalDispatcher", "Outgoing", "Received"]
