"""From a trace and a topology to a placement."""
