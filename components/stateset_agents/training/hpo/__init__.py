"""Hyperparameter search: where studies are kept. The search itself builds on this."""
