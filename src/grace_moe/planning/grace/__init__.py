"""Our planner, `grace`: which experts on which nodes and devices, with which replicas and weights, as one problem.

`grace` runs the steps, one file each: `uncertainty` (how far may loads stray), `node_search` on the true objective (`cover`),
`device_packing` inside each node, `split` of each expert's tokens among its replicas.
"""
