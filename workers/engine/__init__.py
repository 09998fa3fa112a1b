"""Scheduling and execution: request, block pool, scheduler and plan know no torch; runner and sampler do the work."""
