"""What backs every claim about speed: `make bench`, or `python -m benchmarks --only NAME`.

Each benchmark is one file here and one file in `results/`. Nothing in `stateset_agents` imports it.
"""
