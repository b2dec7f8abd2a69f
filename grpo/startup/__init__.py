"""The start of a run before its first step: the checks of settings and data, and the assembly of its parts.

An evaluation's models are put together here too, by `answering.py`.
"""
