"""Evaluation: task folders read and checked, one mteb adapter for every method, reference rows, collected scores.

Importing this package loads neither torch nor mteb; the modules that need them are imported by `run`.
"""
