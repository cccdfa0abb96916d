"""Scenarios and preference pairs: schemas, readers, importers, splits, measures.

Rooms below do not know files of data; steps and evaluation read them here.
"""
