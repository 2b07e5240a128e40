"""Step 15: which replicas decode uses."""
