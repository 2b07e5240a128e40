"""The main job, on the embedded model: record, plan, compare, run on local ranks, verify."""

from grace_moe.demo.job import DemoOptions, DemoResult, DemoRow, run_demo

__all__ = ["DemoOptions", "DemoResult", "DemoRow", "run_demo"]
