"""The searches of `grace`: experts on nodes, on devices, devices on nodes."""
