"""Training of routers: GRPO, supervised labels, and the start from clusters."""
