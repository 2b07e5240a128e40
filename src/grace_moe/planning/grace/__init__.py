"""Our planner, `grace`: which experts on which nodes and devices, with which replicas and weights, as one problem.

`grace.grace` runs the steps in order; docs/planner.md explains each.
"""
