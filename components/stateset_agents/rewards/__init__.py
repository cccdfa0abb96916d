"""Rewards of a domain and rewards that need a model; the shared ones are in `core.reward`."""
