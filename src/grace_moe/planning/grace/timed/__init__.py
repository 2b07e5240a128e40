"""Plans for time (docs/planner.md#plans-for-time): placements judged, and searched, by what a layer takes at the user's batch and phase."""
