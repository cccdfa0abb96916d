"""The steps of the pipeline, one file each, run as `python -m tasks.<step>`.

A step owns its file reading and writing; what it does is in `stateset_agents`.
"""
