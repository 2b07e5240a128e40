"""What the plug-ins share while an engine serves: the plan, the choice of replicas, re-planning."""
