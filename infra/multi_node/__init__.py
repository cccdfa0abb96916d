"""Training over several machines: what torchrun starts, and the Kubernetes job that does it."""
