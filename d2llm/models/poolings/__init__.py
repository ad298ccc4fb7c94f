"""Poolings, a file each: from token states to one vector a text. `d2llm.models.parts` finds them by name; the base says
what each is.
"""
