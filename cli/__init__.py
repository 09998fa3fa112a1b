"""The headrace command, the only place that sees both tiers."""
